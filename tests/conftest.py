"""What every test may count on."""

import os
import signal

# Several workers share the cores: threads that spin or wait for one another there take them from
# who has work. Each is read when its library starts.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "100")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell that starts pytest in the background ignores SIGINT for it, and so for the processes that
# the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
