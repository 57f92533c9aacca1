"""What every test may count on."""

import signal

# A shell that starts pytest in the background ignores SIGINT for it, and so for the processes that
# the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
