import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda.arch import ARCHS, arch_named, archs_named, best_for


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((8, 0), {"sm_80"}),
        ((8, 6), {"sm_80", "sm_86"}),
        ((8, 9), {"sm_80", "sm_86", "sm_89"}),
        ((9, 0), {"sm_90", "sm_90a"}),
        ((10, 0), {"sm_100a", "sm_100a+tcgen05"}),
        ((10, 3), set()),
        ((12, 0), {"sm_120a"}),
        ((7, 5), set()),
    ],
)
def test_which_code_runs_on_a_device(capability: tuple[int, int], runs: set[str]) -> None:
    assert {arch.name for arch in ARCHS if arch.runs_on(capability)} == runs


@pytest.mark.parametrize(
    ("capability", "named", "best"),
    [
        ((8, 9), "sm_80,sm_86,sm_90a", "sm_86"),
        ((9, 0), "sm_90a,sm_90", "sm_90a"),
        ((9, 0), "sm_80,sm_90", "sm_90"),
        ((12, 0), "sm_80,sm_90a", None),
        ((10, 0), "sm_100a+tcgen05,sm_80", "sm_100a+tcgen05"),
        ((10, 0), "sm_100a+tcgen05,sm_100a", "sm_100a"),
    ],
)
def test_the_best_of_an_artifact(capability: tuple[int, int], named: str, best: str | None) -> None:
    found = best_for(capability, archs_named(named))
    assert (None if found is None else found.name) == best


def test_a_step_of_nvcc_for_each() -> None:
    assert arch_named("sm_90a").gencode == "arch=compute_90a,code=sm_90a"


def test_kernels_that_nobody_has_run_are_not_taken_by_themselves() -> None:
    chosen = best_for((10, 0))
    assert chosen is not None
    assert chosen.name == "sm_100a"
    assert arch_named("sm_100a+tcgen05").gencode == chosen.gencode


def test_rules_schedule_for_a_device_that_they_know() -> None:
    assert arch_named("sm_90a").schedule_target.attrs["arch"] == "sm_90"
    assert arch_named("sm_90a").tvm_target.attrs["arch"] == "sm_90a"


@pytest.mark.parametrize("names", ["sm_91", "sm_80,", "90a"])
def test_unknown_names(names: str) -> None:
    with pytest.raises(ConfigError, match="there are: sm_80, sm_86"):
        archs_named(names)


def test_a_name_said_twice() -> None:
    with pytest.raises(ConfigError, match="sm_80 is named twice"):
        archs_named("sm_80,sm_80")
