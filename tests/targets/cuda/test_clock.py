"""Time on a GPU: captured graphs, what they keep alive, and what is said where something fails."""

import signal

import pytest

from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, toolkit

pytestmark = needs.nvcc

START = """
import numpy as np, tvm
from lbcompiler.errors import DeviceError
from lbcompiler.targets.cuda.bench import uploaded, visit
from lbcompiler.targets.cuda import ceilings, clock as clocks
from lbcompiler.targets.cuda.library import Library
from lbcompiler.targets.cuda.machine import gpu_for
arch, gpu = gpu_for("", "the test runs")
clock = clocks.Clock()
count = 2
module = Library.of({"copy": ceilings._copy(count)}, arch).load()
data = np.random.default_rng(0).integers(0, 256, count * ceilings.PIECE).astype(np.uint8)
x, y = uploaded(data), uploaded(np.zeros_like(data))
"""


def runs(code: str, **environment: str) -> None:
    done = run(START + code, **toolkit(), **environment)
    assert done.returncode == 0, done.stderr


def test_a_graph_does_what_its_calls_do_and_keeps_their_tensors() -> None:
    runs(
        "recorded = clock.record(lambda x=x, y=y: module['copy'](x, y), 3)\n"
        "assert recorded.is_graph and recorded.calls == 3\n"
        "y.copyfrom(np.zeros_like(data))\n"
        "assert 0 < clock.seconds(recorded) < 10\n"
        "assert (y.numpy() == data).all()\n"
        "del x, y\n"
        "uploaded(np.zeros_like(data)), uploaded(np.zeros_like(data))\n"
        "assert clock.seconds(recorded) > 0\n"
    )


def test_a_graph_has_its_copies_as_well() -> None:
    runs(
        "recorded = clock.record(lambda: clock.copy(y, x, data.size), 2)\n"
        "assert recorded.is_graph\n"
        "y.copyfrom(np.zeros_like(data))\n"
        "assert not y.numpy().any()\n"
        "assert clock.seconds(recorded) > 0\n"
        "assert (y.numpy() == data).all()\n"
    )


def test_cold_calls_read_one_copy_after_the_other() -> None:
    runs(
        "from itertools import cycle\n"
        "from lbcompiler.formats import FORMATS\n"
        "from lbcompiler.targets.configs import Tuned\n"
        "from lbcompiler.targets.cuda import bench\n"
        "bench.VISIT_S = 0\n"
        "assert clock.cold_bytes == 4 * 60000\n"
        "several = bench.copies_for([x], clock.cold_bytes)\n"
        "assert len(several) == 8 > clock.cold_bytes / data.size > 7, len(several)\n"
        "turns = cycle(several)\n"
        "recorded = clock.record(lambda: module['copy'](*next(turns), y), 7)\n"  # one warms up
        "for place, (copy,) in enumerate(several):\n"
        "    assert (copy.numpy() == data).all()\n"
        "    copy.copyfrom(np.full_like(data, place))\n"
        "clock.seconds(recorded)\n"
        "assert (y.numpy() == 7).all()\n"
        "linear = bench.timed_linear(FORMATS['mxint8'], None, arch, (1, 64, 48), 4000, Tuned(),\n"
        "                            clock)\n"
        "assert (linear.copies, linear.weight_bytes) == (2, 48 * 66), linear\n"
        "assert linear.gemm.is_graph and linear.gemm.calls == 2, linear\n",
        FAKE_CUDA_L2="60000",
    )


def test_what_is_on_the_gpu_is_not_for_the_host_to_touch() -> None:
    done = run(
        START + "held = y.numpy()\n"
        "print('until here', flush=True)\n"
        "clocks.ctypes.string_at(y.data_ptr(), 1)\n",
        **toolkit(),
    )
    assert (done.stdout, done.returncode) == ("until here\n", -signal.SIGSEGV), done.stderr


def test_a_clock_gives_back_its_stream_and_events() -> None:
    runs(
        "alive = clocks.ctypes.CDLL(clocks.RUNTIME).fake_cuda_alive\n"
        "before, another = alive(), clocks.Clock()\n"
        "recorded = another.record(lambda: module['copy'](x, y), 2)\n"
        "assert alive() == before + 4\n"
        "del another\n"
        "assert alive() == before + 4\n"  # the graph is of its stream
        "del recorded\n"
        "assert alive() == before\n"
    )


def test_what_cannot_be_captured_is_launched() -> None:
    """And no graph is left of what could be, as far as that went."""
    runs(
        "real = clocks.ctypes.CDLL(clocks.RUNTIME)\n"
        "class Runtime:\n"
        "    def __init__(self, refused):\n"
        "        self.refused, self.destroyed = refused, 0\n"
        "    def __getattr__(self, name):\n"
        "        if name == self.refused:\n"
        "            return lambda *_: 900\n"
        "        self.destroyed += name == 'cudaGraphDestroy'\n"
        "        return getattr(real, name)\n"
        "for refused, graphs in (('cudaStreamBeginCapture', 0), ('cudaGraphInstantiate', 1)):\n"
        "    y.copyfrom(np.zeros_like(data))\n"
        "    clock._cuda = Runtime(refused)\n"
        "    recorded = clock.record(lambda: module['copy'](x, y), 2)\n"
        "    assert not recorded.is_graph\n"
        "    assert clock._cuda.destroyed == graphs, (refused, clock._cuda.destroyed)\n"
        "    assert clock.seconds(recorded) > 0\n"
        "    assert (y.numpy() == data).all()\n"
        "clock._cuda, calls = Runtime(''), []\n"
        "def refused():\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"  # the first is outside of the graph
        "        raise ValueError\n"
        "    module['copy'](x, y)\n"
        "assert not clock.record(refused, 2).is_graph\n"
        "assert clock._cuda.destroyed == 1\n"
    )


def test_a_visit_takes_its_time_and_turns_whole_rounds_of_copies() -> None:
    runs(
        "from lbcompiler.targets.cuda import bench\n"
        "bench.VISIT_S = 1.0\n"
        "recorded = visit(clock, lambda: module['copy'](x, y), 3)\n"
        "assert recorded.calls % 3 == 0 and recorded.calls > 3\n"
        "bench.VISIT_S = 0\n"
        "assert visit(clock, lambda: module['copy'](x, y), 3).calls == 3\n"
    )


@pytest.mark.parametrize("launch", ["719"])
def test_a_failing_launch_is_an_error(launch: str) -> None:
    """And not the end of the process, where what lay on the GPU is freed."""
    runs(
        "call = lambda module=module, x=x, y=y: module['copy'](x, y)\n"
        "try:\n"
        "    clock.record(call, 2)\n"
        "except Exception as error:\n"
        "    assert '719' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it ran')\n",
        FAKE_CUDA_LAUNCH=launch,
    )


def test_a_kernel_that_never_ends_is_an_error() -> None:
    runs(
        "clocks.PATIENCE_S = 0.01\n"
        "real = clocks.ctypes.CDLL(clocks.RUNTIME)\n"
        "class Runtime:\n"
        "    def __getattr__(self, name):\n"
        "        return (lambda *_: 600) if name == 'cudaEventQuery' else getattr(real, name)\n"
        "clock._cuda = Runtime()\n"
        "try:\n"
        "    clock.run(lambda: module['copy'](x, y))\n"
        "except DeviceError as error:\n"
        "    assert 'did not end' in str(error)\n"
        "else:\n"
        "    raise SystemExit('it ended')\n"
    )


def test_the_systems_cuda_runtime_goes_before_that_of_packages() -> None:
    """Only so can another be put in its place."""
    runs(
        "from lbcompiler.targets.cuda import machine\n"
        "opened, real = [], machine.ctypes.CDLL\n"
        "machine.ctypes.CDLL = lambda name, *mode: opened.append(name) or real(name, *mode)\n"
        "machine._has_runtime = lambda: False\n"
        "machine._load_runtime(gpu)\n"
        "assert opened[0] == machine.RUNTIME and len(opened) == 2, opened\n"
    )


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("sm_80", "cannot run sm_80 code: say --target cuda"),
        ("sm_90,sm_90a", "one architecture at a time"),
        ("sm_1", "unknown architecture"),
    ],
)
def test_an_architecture_that_is_not_there(variant: str, said: str) -> None:
    runs(
        "from lbcompiler.errors import ConfigError\n"
        "try:\n"
        f"    gpu_for({variant!r}, 'lbc tune measures')\n"
        "except ConfigError as error:\n"
        f"    assert {said!r} in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it was there')\n",
        FAKE_CUDA_CAPABILITY="9.0",
    )
