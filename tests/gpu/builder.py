"""`python -m tests.gpu.builder FOLDER OPTIONS`: builds checks that no other builder has begun, in
the order of the plan. Several run at once.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.check import Check, library_of
from tests.gpu.plan import Options, plan

CLAIMED, DONE, FAILED = "claimed", "built", "not built"


def folder_of(root: Path, index: int) -> Path:
    return root / f"{index:03}"


def homes(checks: Sequence[Check]) -> list[int]:
    """Of each check the index of that which is built for it: the first of its library."""
    first: dict[str, int] = {}
    return [first.setdefault(library_of(check), index) for index, check in enumerate(checks)]


def is_built(folder: Path) -> bool:
    return (folder / DONE).exists() or (folder / FAILED).exists()


def build(check: Check, folder: Path) -> None:
    """Leaves DONE, or FAILED with the reason."""
    try:
        check.build(folder)
    except Exception as error:  # of the generator, of nvcc, of the emulator: told as a record
        lines = str(error).strip().splitlines() or [""]
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        (folder / FAILED).write_text(f"{type(error).__name__}: {lines[0]} ({place})")
        return
    (folder / DONE).touch()


def main(root: Path, options: Options) -> None:
    checks = plan(options)
    for index, home in enumerate(homes(checks)):
        if home != index:
            continue
        folder = folder_of(root, index)
        folder.mkdir(exist_ok=True)
        try:
            (folder / CLAIMED).touch(exist_ok=False)
        except FileExistsError:
            continue
        build(checks[index], folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Options.of(sys.argv[2]))
