"""RapidOCR's three networks (PP-OCRv4 mobile), as they lie in the package `rapidocr-onnxruntime`.

rapidocr_recognition.onnx  x float32 (batch, 3, 48, width) -> softmax (batch, steps, 6625);
                           the alphabet is its metadata `character`, one character a line
rapidocr_detection.onnx    x float32 (batch, 3, height, width), both multiples of 32
                           -> text map (batch, 1, height, width)
rapidocr_angle.onnx        x float32 (batch, 3, 48, 192) -> softmax (batch, 2): upright, upside down

Copied byte for byte: opset 11 and 12, weights in `Constant` nodes, dimensions named "?" are what a
compiler meets in the wild.
"""

import argparse
import shutil
from pathlib import Path

from packages import package_folder, report

HERE = Path(__file__).parent
FILES = {
    "rapidocr_recognition.onnx": "ch_PP-OCRv4_rec_infer.onnx",
    "rapidocr_detection.onnx": "ch_PP-OCRv4_det_infer.onnx",
    "rapidocr_angle.onnx": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}


def build(output: Path) -> list[Path]:
    """Copy the three models into the folder `output`; the paths written."""
    source = package_folder("rapidocr_onnxruntime") / "models"
    output.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(source / theirs, output / ours)) for ours, theirs in FILES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy the RapidOCR models out of their package.")
    parser.add_argument("--output", type=Path, default=HERE / "built", help="folder to write into")
    report(build(parser.parse_args().output))


if __name__ == "__main__":
    main()
