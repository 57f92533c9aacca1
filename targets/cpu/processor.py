"""The processor of this machine."""

import tvm


def processor() -> str:
    """LLVM's name of it: znver5, sapphirerapids, ..."""
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())
