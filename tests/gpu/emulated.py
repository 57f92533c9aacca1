"""`python -m tests.gpu.emulated NAME FOLDER`: a check's kernels on the GPU that is not there."""

import sys
from pathlib import Path

from tests.gpu.kernels import emulate
from tests.gpu.plan import kernel_checks

if __name__ == "__main__":
    emulate(kernel_checks()[sys.argv[1]], Path(sys.argv[2]))
