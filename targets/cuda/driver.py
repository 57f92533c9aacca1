"""The NVIDIA driver and its first GPU, asked without any CUDA package, or why there is none."""

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """`cuda`: the release of CUDA that the driver is made for."""

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int]


class NoGpuError(Exception):
    """Says what is missing."""


def first_gpu() -> Gpu:
    """Raises NoGpuError."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        raise NoGpuError(f"there is no NVIDIA driver ({LIBRARY} cannot be loaded)") from None
    status = driver.cuInit(0)
    if status:
        reason = "it sees no GPU" if status == _NO_DEVICE else f"cuInit gives error {status}"
        raise NoGpuError(f"the NVIDIA driver does not start: {reason}")
    count, device, release = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise NoGpuError("the NVIDIA driver sees no GPU")
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDriverGetVersion(ctypes.byref(release))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    major, minor = divmod(release.value, 1000)
    return Gpu(name.value.decode(errors="replace"), (numbers[0], numbers[1]), (major, minor // 10))
