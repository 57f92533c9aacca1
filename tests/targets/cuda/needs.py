"""What tests of CUDA need beside Python packages."""

import pytest

from lbcompiler.targets.cuda.toolchain import find_tool

nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
cuobjdump = pytest.mark.skipif(
    find_tool("cuobjdump") is None or find_tool("nvdisasm") is None,
    reason="cuobjdump and nvdisasm are not installed (the extra `test`)",
)
