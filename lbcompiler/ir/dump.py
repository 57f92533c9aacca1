"""The IR as text, a file a stage: what `--dump-ir` leaves behind."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

Dump = Callable[[str, Any], None]  # (stage, module behind it)


def no_dump(_stage: str, _module: Any) -> None:
    """The dump of someone who did not ask."""


def dump_into(folder: str | Path | None) -> Dump:
    """Writes each module it is given as text into `folder`, numbered; None writes nothing."""
    if folder is None:
        return no_dump
    numbers, into = count(), Path(folder)

    def dump(stage: str, module: Any) -> None:
        into.mkdir(parents=True, exist_ok=True)
        (into / f"{next(numbers):02d}-{stage}.py").write_text(module.script() + "\n")

    return dump
