"""Tuning on a GPU that is not there: what is measured, what fails, what a compile makes of it."""

from pathlib import Path

import numpy as np
import pytest

import lbcompiler
from lbcompiler.formats import FORMATS
from lbcompiler.targets.configs import Result, Source, Table, Tuned, shape_class
from lbcompiler.targets.cuda import file_name, tuned_for
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.bench import exact_rows
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.tuning.database import versions
from lbcompiler.tuning.results import read_results
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, toolkit
from tests.targets.cuda.reference import products
from tests.test_cli_flow import language_model

MXINT4 = FORMATS["mxint4"]
SM_80, SM_90A = arch_named("sm_80"), arch_named("sm_90a")
BENCH = """
import os
import numpy as np
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda import bench
from lbcompiler.tuning.measure import CandidateError
from lbcompiler.tuning.targets import open_target
from lbcompiler.tuning.work import Work
bench.VISIT_S = 0
with open_target("cuda", None, None) as target:
    kernel = target.kernel_for(FORMATS["mxint4"], FORMATS["mxint4"])
    work = Work.of(kernel, (3, 64, 48), target.tuned)
    bench = target.make_bench(work, target.machine, 1)
    other = work.config({"few_warps": 4, "few_stages": 3})
"""


def on_gpu(code: str) -> None:
    done = run(BENCH + code, **toolkit(), FAKE_CUDA_CAPABILITY="8.0", FAKE_CUDA_L2="1000")
    assert done.returncode == 0, done.stderr


@needs.nvcc
def test_results_are_kept_under_the_gpu_and_found_without_one(tmp_path: Path) -> None:
    done = run(
        "import lbcompiler\n"
        "from lbcompiler.targets.cuda import bench\n"
        "from lbcompiler.tuning.results import read_results\n"
        "bench.VISIT_S = 0\n"
        "found = lbcompiler.tune(shapes=[(3, 64, 48)], target='cuda', format='mxint4', trials=2,\n"
        f"                        seconds=90, db={str(tmp_path / 't.db')!r})\n"
        "assert [o.kernel for o in found] == ['exact_mxint4_mxint4_sm_80'], found\n"
        "assert found[0].trials >= 2 and found[0].failed == 0, found\n"
        "assert found[0].default_ms > 0 and found[0].shape_class == 'few k64 n64', found\n"
        f"name = {str(tmp_path / 't.db')!r}\n"
        "(mine,) = read_results(name, 'cuda').sources\n"
        "assert mine.name == name, mine\n"
        "(other,) = read_results(name, 'cpu').sources\n"  # which asks for no GPU
        "assert other.name == f'{name} (Emulated GPU)', other\n",
        **toolkit(),
        FAKE_CUDA_CAPABILITY="8.0",
        FAKE_CUDA_L2="1000",
    )
    assert done.returncode == 0, done.stderr
    (other,) = read_results(tmp_path / "t.db", "cuda").sources
    assert other.name.endswith("(Emulated GPU)")
    assert other.results[0].kernel == "exact_mxint4_mxint4_sm_80"


@needs.nvcc
def test_a_candidate_has_the_defaults_bits_and_its_time_beside() -> None:
    on_gpu(
        "    times = bench.compare(other)\n"
        "    assert times.ms > 0 and times.default_ms > 0 and times.ratio > 0\n"
        "    bench.expected = bench.expected + 1\n"
        "    try:\n"
        "        bench.compare(other)\n"
        "    except CandidateError as error:\n"
        "        assert 'other bits' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('its bits were not compared')\n"
    )


@needs.nvcc
def test_what_asks_for_too_much_is_a_candidate_that_fails() -> None:
    on_gpu(
        "    try:\n"
        "        bench.compare(work.config({'few_warps': 8, 'few_stages': 600}))\n"
        "    except CandidateError as error:\n"
        "        assert 'shared memory' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('it was built')\n"
    )


@needs.nvcc
def test_a_candidate_that_spoils_the_gpu_is_the_last() -> None:
    on_gpu(
        "    bench.build([other])\n"
        "    os.environ['FAKE_CUDA_LAUNCH'] = '719'\n"
        "    try:\n"
        "        bench.compare(other)\n"
        "    except CandidateError as error:\n"
        "        assert '719' in str(error), error\n"
        "    try:\n"
        "        bench.compare(other)\n"
        "    except ConfigError as error:\n"
        "        assert 'no longer runs' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('it went on')\n"
    )


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_sums_of_exact_rows_are_exact_in_any_order(fmt) -> None:
    q = fmt.quantize(exact_rows(6, 4096), per_row=True)
    values = products(q, fmt)
    assert len(np.unique(q.scales)) == 1
    order = np.random.default_rng(0).permutation(4096)
    terms = (values[:, None, :] * values[None]).astype(np.float32)
    wanted = terms.astype(np.float64).sum(axis=-1)
    for arranged in (terms, terms[..., ::-1], terms[..., order]):
        running = np.add.accumulate(arranged, axis=-1, dtype=np.float32)[..., -1]
        np.testing.assert_array_equal(running, wanted)


def test_each_part_of_a_kernel_has_results_of_its_own() -> None:
    kernel = kernel_for(MXINT4, MXINT4, SM_90A)
    rows = kernel.default_config(4096, 4096).rows
    classes = [shape_class(kernel, (m, 4096, 4096)) for m in (1, 16, 17, rows, rows + 1, 4096)]
    assert [name for name, _, _ in classes] == ["few", "few", "many", "many", "wide", "wide"]
    results = tuple(
        Result(kernel=kernel.name, shape=(m, 4096, 4096), config=config, ms=1, default_ms=2)
        for m, config in ((1, {"few_warps": 4}), (64, {"stages": 2}), (4096, {"wide_stages": 2}))
    )
    chosen = Tuned((Source("t", results),)).choose(kernel, 4096, 4096).config
    assert (chosen.few_warps, chosen.stages, chosen.wide_stages) == (4, 2, 2)


def test_tables_are_looked_up_by_gpu_and_architecture() -> None:
    assert file_name("NVIDIA H200") == "nvidia_h200"
    mine = Source("mine", ())
    assert tuned_for(SM_80, "NVIDIA A100", [mine]).sources[0] == mine


@needs.nvcc
def test_a_compile_takes_them(tmp_path: Path) -> None:
    language_model(tmp_path / "lm.onnx")
    held = Result(
        kernel="exact_mxint4_mxint4_sm_80",
        shape=(1, 64, 96),
        config={"few_warps": 4, "few_stages": 3},
        ms=1,
        default_ms=2,
    )
    table = tmp_path / "t.json"
    table.write_text(Table(processor="a GPU", versions=versions(), results=(held,)).to_text())
    artifact = lbcompiler.compile(
        tmp_path / "lm.onnx",
        target="cuda:sm_80",
        format="mxint4",
        tuning_db=table,
        output=tmp_path / "lm.lbc",
    )
    layers = {tuple(layer.shape): layer for layer in artifact.manifest.layers}
    assert layers[96, 64].config_source == str(table)
    assert layers[96, 64].config["few_warps"] == 4
    assert layers[48, 96].config_source == "default"
