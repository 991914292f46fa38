"""How a DeepSeek-style language model is trained cheaply, small enough to read."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # a command begins: Ctrl-C while torch is imported just ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nanoseek.cli import introduce
    introduce(sys.orig_argv)  # and ends what names no command
