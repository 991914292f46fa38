"""console.py: Ctrl-C asks a run to stop, and a second one does not wait for the step."""

import signal

import pytest

from nanoseek.lab.console import stop_requests


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as asked:
        assert not asked
        signal.raise_signal(signal.SIGINT)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_of_several_ranks_none_is_interrupted():
    with stop_requests(ranks=2) as asked:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
    assert len(asked) == 3
