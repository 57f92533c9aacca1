"""What a kernel says of itself is what it takes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.arch import ARCHS, arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.targets.cuda.reference import SM_80, SMALL

each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@each_format
def test_packed_weights_are_as_their_specs(fmt) -> None:
    w = fmt.quantize(np.random.default_rng(0).standard_normal((37, 200)).astype(np.float32))
    kernel = kernel_for(fmt, fmt, SM_80)
    packed = [(array.shape, str(array.dtype)) for array in kernel.pack(w)]
    assert packed == kernel.packed_specs(37, 200)


@each_format
@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.name)
def test_every_default_config_fits_its_architecture(fmt, arch) -> None:
    for act in (fmt, None):
        kernel = kernel_for(fmt, act, arch)
        assert kernel.gemm(256, 256, bias=False) is not None


@pytest.mark.parametrize(
    "arch", [pytest.param("sm_89", marks=pytest.mark.slow), "sm_90a", "sm_120a"]
)
@pytest.mark.parametrize("m", [1, 100, 1000])
def test_what_is_worth_trying_is_built_or_asks_for_too_much(arch, m) -> None:
    kernel = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], arch_named(arch))
    space, default = kernel.space(m, 256, 256), kernel.default_config(256, 256)
    built = 0
    for values in product(*space.values()):
        config = replace(default, **dict(zip(space, values, strict=True)))
        try:
            built += kernel.gemm(256, 256, bias=False, config=config) is not None
        except ConfigError as error:
            assert "bytes of shared memory" in str(error)  # noqa: PT017 - either may be
    assert built > 1


def test_names_tell_kernels_apart() -> None:
    kernels = [kernel_for(f, a, SM_80) for f in FORMATS.values() for a in (f, None)]
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert kernels[0].name == "exact_mxint8_mxint8_sm_80"
    assert {kernel.route for kernel in kernels} == {"exact"}


def test_too_much_shared_memory_is_refused() -> None:
    kernel = kernel_for(FORMATS["mxint8"], None, arch_named("sm_86"))
    config = kernel_for(FORMATS["mxint8"], None, SM_80).default_config(256, 256)
    with pytest.raises(ConfigError, match=r"164864 bytes of shared memory .* sm_86 has 101376"):
        kernel.gemm(256, 256, bias=False, config=config)
    assert kernel.gemm(256, 256, bias=False, config=SMALL) is not None
