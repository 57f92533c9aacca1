"""Candidates that are really compiled and timed, here and behind TVM RPC."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.targets.configs import Tuned
from lbcompiler.targets.cpu.isa import AVX512_VNNI, GENERIC, detect
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.processor import processor
from lbcompiler.tuning import machine as machines
from lbcompiler.tuning import measure
from lbcompiler.tuning.build import build_all
from lbcompiler.tuning.machine import open_machine
from lbcompiler.tuning.measure import CandidateError, GemmBench
from lbcompiler.tuning.work import Work


def work(shape: tuple[int, int, int], weight: str, act: str | None) -> Work:
    kernel = kernel_for(FORMATS[weight], None if act is None else FORMATS[act], detect())
    return Work.of(kernel, shape, Tuned())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "VISIT_S", 0.001)


@pytest.mark.parametrize(
    ("shape", "weight", "act"),
    [
        ((33, 96, 80), "nvfp4", "nvfp4"),
        ((1, 96, 80), "mxint8", None),
        ((2, 64, 600), "mxfp8", "mxfp4"),
    ],
)
def test_every_kind_of_kernel_is_timed(
    shape: tuple[int, int, int], weight: str, act: str | None
) -> None:
    item = work(shape, weight, act)
    with open_machine(None, item.kernel.isa, 1) as machine:
        assert machine.processor == processor()
        bench = GemmBench(item, machine, 1)
        bench.build([item.default])
        times = bench.compare(item.config(item.neighbours()[0]))
    assert np.isfinite(bench.expected.view(np.float32)).all()
    assert np.count_nonzero(bench.expected)
    assert 0 < times.ms < 1000
    assert 0 < times.default_ms < 1000
    assert times.ratio > 0


def test_what_cannot_be_built_run_or_trusted_fails_its_trial() -> None:
    item = work((33, 64, 64), "mxint8", "mxint8")
    with open_machine(None, item.kernel.isa, 1) as machine:
        bench = GemmBench(item, machine, 1)
        with pytest.raises(CandidateError, match="Error"):
            bench.compare(replace(item.default, rows=0))
        bench.expected = bench.expected + 1
        with pytest.raises(CandidateError, match="other bits"):
            bench.compare(item.default)
        bench.built[item.default] = b"no library"
        with pytest.raises(CandidateError):
            bench.compare(item.default)


def test_a_machine_that_died_fails_no_trial() -> None:
    item = work((33, 64, 64), "mxint8", "mxint8")

    def dead(*_: object) -> None:
        raise RuntimeError("connection lost")

    with open_machine(None, item.kernel.isa, 1) as machine:
        bench = GemmBench(item, machine, 1)
        bench.build([item.default])
        bench.default = dead
        bench.machine = replace(machine, load=dead)
        with pytest.raises(ConfigError, match=r"no longer answers \(connection lost\)"):
            bench.compare(item.default)


def test_candidates_are_compiled_in_other_processes() -> None:
    item = work((33, 64, 64), "nvint4", "nvint4")
    configs = [item.config(fields) for fields in item.neighbours()[:2]]
    _, k, n = item.shape
    with open_machine(None, item.kernel.isa, 1) as machine:
        for built in build_all(machine.compiled, item.kernel, n, k, configs, jobs=2):
            assert isinstance(built, bytes)


def test_code_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "detect", lambda: GENERIC)
    with (
        pytest.raises(ConfigError, match=r"cannot run avx512_vnni code .*--rpc"),
        open_machine(None, AVX512_VNNI, None),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("somewhere", "host:port"),
        ("host:port", "host:port"),
        ("127.0.0.1:1", "no TVM RPC server answers at 127.0.0.1:1"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), open_machine(address, GENERIC, None):
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A TVM RPC server in a process group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tvm.exec.rpc_server", *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the RPC server did not start")


@pytest.mark.parametrize("shape", [(33, 96, 80), (1, 96, 80)])
def test_another_machine_measures(server: str, shape: tuple[int, int, int]) -> None:
    item = work(shape, "mxint8", "mxint8")
    with open_machine(server, item.kernel.isa, 1) as machine:
        assert machine.processor == processor()
        bench = GemmBench(item, machine, 1)
        times = bench.compare(item.config(item.neighbours()[0]))
    assert 0 < times.ms < 1000
