"""Which config a kernel gets: the nearest result of its class, from the first table with one."""

from dataclasses import fields
from pathlib import Path

import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.configs import (
    DEFAULT,
    Result,
    Source,
    Table,
    Tuned,
    read_table,
    shape_class,
    shipped,
)
from lbcompiler.targets.cpu import tables_of, tuned_for
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.isa import AVX2, ISAS, preferred
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.processor import processor

KERNELS = {
    kernel.name: kernel
    for isa in ISAS
    for weight in FORMATS.values()
    for act in (weight, None)
    for kernel in (kernel_for(weight, act, isa),)
}
MXINT8 = KERNELS["integer_mxint8_mxint8_avx2"]
SHIPPED = sorted((Path(__file__).parents[3] / "targets" / "cpu" / "tuned").glob("*.json"))


def result(m: int, k: int, n: int, **config: int) -> Result:
    return Result(kernel=MXINT8.name, shape=(m, k, n), config=config, ms=1, default_ms=2)


def test_a_class_is_a_program_and_octaves_of_k_and_n() -> None:
    assert shape_class(MXINT8, (1, 4096, 4096)) == ("one", 12, 12)
    assert (
        shape_class(MXINT8, (2, 4096, 4096))
        == shape_class(MXINT8, (15, 5000, 3000))
        == ("few", 12, 12)
    )
    assert shape_class(MXINT8, (16, 4096, 4096)) == ("many", 12, 12)
    assert shape_class(MXINT8, (16, 6000, 11008)) == ("many", 13, 13)


def test_programs_have_results_of_their_own() -> None:
    default = MXINT8.default_config(1000, 1000)
    one = result(1, 1024, 1024, small_columns=3)
    few, many = result(4, 1024, 1024, few_columns=3), result(64, 1024, 1024, chunk=32)
    for results in ((one,), (one, few), (few, many), (one, few, many)):
        names = {name for held in results for name in held.config}
        chosen = Tuned((Source("t", results),)).choose(MXINT8, 1000, 1000)
        changed = {
            field.name
            for field in fields(Config)
            if getattr(chosen.config, field.name) != getattr(default, field.name)
        }
        assert changed == names
        assert chosen.source == "t"


@pytest.mark.parametrize(
    "other",
    [
        result(4, 2048, 1024, few_columns=2),
        result(4, 1024, 1024, few_columns=777),
        result(4, 1024, 1024, small_columns=2),
        result(4, 1024, 1024, no_such_field=1),
        result(4, 1024, 1024, few_columns=2).model_copy(update={"kernel": "another"}),
    ],
)
def test_what_does_not_fit_is_passed_over(other: Result) -> None:
    chosen = Tuned((Source("t", (other,)),)).choose(MXINT8, 1000, 1000)
    assert chosen.config == MXINT8.default_config(1000, 1000)
    assert chosen.source == DEFAULT


def test_the_nearest_of_the_first_table_wins() -> None:
    far, near = result(1, 800, 900, small_columns=2), result(1, 1000, 999, small_columns=1)
    nearest, many = result(1, 1000, 1000, small_columns=3), result(16, 1000, 1000, chunk=32)
    sources = (Source("first", (far, near)), Source("second", (nearest, many)))
    chosen = Tuned(sources).choose(MXINT8, 1000, 1000)
    assert chosen.config.small_columns == 1
    assert chosen.config.chunk == 32
    assert chosen.source == "first + second"


def test_a_table_survives_its_file(tmp_path) -> None:
    results = (result(1, 64, 64, small_columns=1), result(128, 64, 64, chunk=32, rows=4))
    for held in (results, ()):
        table = Table(processor="p", versions={"lbcompiler": "1"}, results=held)
        (tmp_path / "t.json").write_text(table.to_text())
        assert read_table(tmp_path / "t.json") == table


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_results_are_choices_of_their_kernels(path) -> None:
    for held in read_table(path).results:
        m, k, n = held.shape
        space = KERNELS[held.kernel].space(m, n, k)
        assert KERNELS[held.kernel].tuned_as(m) == held.kernel
        assert held.config.keys() == space.keys()
        for name, value in held.config.items():
            assert value in space[name], held
        assert held.ms <= held.default_ms


def test_this_machine_has_its_table_and_a_named_isa_its_own() -> None:
    isa, tuned = tuned_for()
    assert isa == preferred()
    assert tuned.sources == shipped("cpu", [processor(), *tables_of(isa)])
    assert tuned_for("avx2") == (AVX2, Tuned(shipped("cpu", ["avx2", "generic"])))
    mine = Source("mine", ())
    assert tuned_for("avx512_vnni", [mine])[1].sources == (
        mine,
        *shipped("cpu", ["avx512_vnni", "avx2", "generic"]),
    )
