import platform

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu.isa import (
    AVX2,
    AVX512_VNNI,
    GENERIC,
    ISAS,
    detect,
    host_flags,
    isa_named,
)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_an_instruction_set_is_found_by_its_name(isa) -> None:
    assert isa_named(isa.name) is isa


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'sse9'.*avx512_bf16, avx512_vnni, avx2, generic"):
        isa_named("sse9")


def test_every_machine_runs_generic_code_and_a_better_one_all_below() -> None:
    assert GENERIC.requires == frozenset()
    assert GENERIC.runs_on(AVX2)
    assert AVX2.runs_on(AVX512_VNNI)
    assert not AVX512_VNNI.runs_on(AVX2)


def test_the_host_has_what_is_detected() -> None:
    assert detect().requires <= host_flags()
    if platform.machine() != "x86_64":
        assert detect() is GENERIC


def test_a_target_is_neutral_of_the_machine_it_is_made_on() -> None:
    target = AVX512_VNNI.tvm_target(cores=2)
    assert target.attrs["mcpu"] == "x86-64-v4"
    assert list(target.attrs["mattr"]) == ["+avx512vnni"]
