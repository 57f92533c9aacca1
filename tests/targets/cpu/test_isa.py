import platform

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu import isa
from lbcompiler.targets.cpu.isa import (
    AVX2,
    AVX512_AMX,
    AVX512_BF16,
    AVX512_VNNI,
    GENERIC,
    ISAS,
    Isa,
    detect,
    host_flags,
    isa_named,
    obstacle,
    preferred,
)


@pytest.mark.parametrize("each", ISAS, ids=lambda each: each.name)
def test_an_instruction_set_is_found_by_its_name(each: Isa) -> None:
    assert isa_named(each.name) is each


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


@pytest.mark.parametrize(
    ("vendor", "wanted"), [("GenuineIntel", AVX512_VNNI), ("AuthenticAMD", AVX512_BF16)]
)
def test_pairs_of_bfloat16_are_not_preferred_where_they_are_slow(
    vendor: str, wanted: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"vendor_id": vendor, "flags": " ".join(AVX512_BF16.requires)}
    monkeypatch.setattr(isa, "_host", fields.__getitem__)
    assert detect() is AVX512_BF16
    assert preferred() is wanted


@pytest.mark.parametrize("is_granted", [True, False])
def test_tiles_are_taken_where_the_system_grants_them(
    is_granted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"vendor_id": "GenuineIntel", "flags": " ".join(AVX512_AMX.requires)}
    monkeypatch.setattr(isa, "_host", fields.__getitem__)
    monkeypatch.setattr(isa, "tiles_are_granted", lambda: is_granted)
    assert detect() is (AVX512_AMX if is_granted else AVX512_BF16)
    assert preferred() is (AVX512_AMX if is_granted else AVX512_VNNI)
    assert AVX512_BF16.runs_on(detect())
    assert ("does not grant" in obstacle(AVX512_AMX)) is not is_granted


def test_tiles_are_asked_for_by_code_that_has_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(isa, "_host", lambda field: " ".join(AVX512_AMX.requires))
    monkeypatch.setattr(isa, "tiles_are_granted", asked)
    assert obstacle(AVX512_VNNI) == ""
    with pytest.raises(AssertionError, match="asked"):
        obstacle(AVX512_AMX)


def test_a_target_is_neutral_of_the_machine_it_is_made_on() -> None:
    target = AVX512_VNNI.tvm_target(cores=2)
    assert target.attrs["mcpu"] == "x86-64-v4"
    assert list(target.attrs["mattr"]) == ["+avx512vnni"]
