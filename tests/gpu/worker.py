"""`python -m tests.gpu.worker FOLDER OPTIONS INDEX..`: runs checks on the GPU, whichever is built
first, and says what became of each in a line of JSON.

A kernel that reads where nothing is spoils the GPU for its process: then this one ends, with
SPOILED, and another takes what is left.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from lbcompiler.errors import never_freed
from lbcompiler.targets.cuda.machine import gpu_for
from tests.gpu.builder import FAILED as NOT_BUILT
from tests.gpu.builder import folder_of, is_built
from tests.gpu.check import (
    FAILED,
    MEASURED,
    PASSED,
    SKIPPED,
    Check,
    MissingError,
    Record,
    WrongError,
)
from tests.gpu.plan import Options, plan

MARK = "@ "  # of lines that are ours
SPOILED = 3
POLL_S = 0.05
WELL_S = 5.0  # for a few bytes there and back; a GPU that hangs never brings them


def main(root: Path, options: Options, indices: list[int]) -> int:
    gpu_for(options.archs[0], "the check runs")
    checks, left = plan(options), list(indices)
    folders = [folder_of(root, check) for check in checks]
    while left:
        index = next((i for i in left if is_built(folders[i])), None)
        if index is None:
            time.sleep(POLL_S)
            continue
        left.remove(index)
        say({"begin": index})
        record = run(checks[index], folders[index])
        say({"index": index, "record": asdict(record)})
        if record.status == FAILED and not is_well():
            os._exit(SPOILED)  # to free what TVM keeps on the GPU would end it with a signal
    return 0


def run(check: Check, folder: Path) -> Record:
    if (folder / NOT_BUILT).exists():
        return Record(check.name, FAILED, 0, f"not built: {(folder / NOT_BUILT).read_text()}")
    start = time.monotonic()

    def record(status: str, reason: str = "", figures: Mapping[str, Any] | None = None) -> Record:
        return Record(check.name, status, time.monotonic() - start, reason, figures or {})

    try:
        figures = check.run(folder)
    except WrongError as error:
        return record(FAILED, str(error))
    except MissingError as error:
        return record(SKIPPED, str(error))
    except Exception as error:  # of CUDA, through TVM or through us, under many names
        if not is_well():
            never_freed(error)
        lines = str(error).strip().splitlines() or [""]
        return record(FAILED, f"{type(error).__name__}: {lines[0]} .. {lines[-1]}"[:1000])
    is_measure = getattr(check, "is_measure", False)
    return record(MEASURED if is_measure else PASSED, figures=figures)


def is_well() -> bool:
    """Whether the GPU still does what it is told, soon."""
    found: list[bool] = []
    probe = threading.Thread(target=lambda: found.append(_answers()), daemon=True)
    probe.start()
    probe.join(WELL_S)
    return found == [True]


def _answers() -> bool:
    numbers = np.arange(64, dtype=np.float32)
    try:
        tensor = tvm.runtime.tensor(numbers, tvm.cuda(0))
        tvm.cuda(0).sync()
        return bool((tensor.numpy() == numbers).all())
    except Exception:  # any: it is not well
        return False


def say(message: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Options.of(sys.argv[2]), list(map(int, sys.argv[3:]))))
