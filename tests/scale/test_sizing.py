"""sizing.py: more text is worth more steps, repetitive text more epochs, and minutes are a limit."""

import random

from nanoseek.scale.sizing import LEAST_STEPS, steps, vocabulary

RANDOM = random.Random(0)
NOISE = RANDOM.randbytes(20_000)  # cannot be compressed: read once or twice
CODE = b"".join(b"def f%d(x):\n    return x + %d\n" % (n, n) for n in range(1000))


def test_steps_follow_the_text_and_the_time():
    few, many = (steps(CODE, tokens, 2048, 0.1, minutes=1000) for tokens in (100_000, 200_000))
    assert abs(many / few - 2) < 0.02  # as many epochs of twice the text
    assert steps(NOISE, 200_000, 2048, 0.1, minutes=1000) < many / 2
    assert steps(CODE, 10**9, 2048, 0.1, minutes=3) == 1800
    assert steps(CODE, 100, 2048, 0.1, minutes=3) == LEAST_STEPS


def test_a_longer_text_never_gets_a_smaller_vocabulary():
    sizes = [vocabulary(size) for size in (0, 10**4, 10**5, 10**6, 10**7, 10**9)]
    assert sizes == sorted(sizes) and sizes[0] == 512 and sizes[-1] == 4096
