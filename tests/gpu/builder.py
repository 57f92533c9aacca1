"""`python -m tests.gpu.builder FOLDER OPTIONS`: builds checks that no other builder has begun, in
the order of the plan. Several run at once.
"""

import hashlib
import sys
import traceback
from pathlib import Path

from tests.gpu.check import Check, library_of
from tests.gpu.plan import Options, plan

DONE, FAILED = "built", "not built"


def folder_of(root: Path, check: Check) -> Path:
    """Where it is built: checks of one library in the same."""
    return root / hashlib.sha256(library_of(check).encode()).hexdigest()[:16]


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
    for check in plan(options):
        folder = folder_of(root, check)
        try:
            folder.mkdir()
        except FileExistsError:  # another builder has begun it
            continue
        build(check, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Options.of(sys.argv[2]))
