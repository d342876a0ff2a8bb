"""A shell that starts pytest in the background makes it, and all its children, deaf to Ctrl-C: tests of Ctrl-C need it."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
