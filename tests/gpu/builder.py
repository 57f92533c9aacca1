"""`python -m tests.gpu.builder FOLDER OPTIONS`: builds checks that no other builder has begun, in
the order of the plan. Several run at once.
"""

import sys
import traceback
from pathlib import Path

from tests.gpu.check import Check
from tests.gpu.plan import Options, plan

CLAIMED, DONE, FAILED = "claimed", "built", "not built"


def folder_of(root: Path, index: int) -> Path:
    return root / f"{index:03}"


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
    for index, check in enumerate(plan(options)):
        folder = folder_of(root, index)
        folder.mkdir(exist_ok=True)
        try:
            (folder / CLAIMED).touch(exist_ok=False)
        except FileExistsError:
            continue
        build(check, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Options.of(sys.argv[2]))
