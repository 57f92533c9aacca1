"""What every test may count on."""

import os
import shutil
import signal
import tempfile

import pytest

# Several workers share the cores: threads that spin or wait for one another there take them from
# who has work. Each is read when its library starts.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "100")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell that starts pytest in the background ignores SIGINT for it, and so for the processes that
# the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """A run begins with an empty folder of compiled kernels, which its workers share; one that is
    named (`XDG_CACHE_HOME`) is taken as it is.
    """
    if "XDG_CACHE_HOME" not in os.environ:
        os.environ["XDG_CACHE_HOME"] = folder = tempfile.mkdtemp(prefix="lbc-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
