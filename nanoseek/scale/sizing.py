"""How long to train on a text of the reader's own, and with how large a vocabulary.

    vocabulary(1_100_000)                                    # ids for a text of so many bytes
    steps(383_000, 2048, seconds_per_step=0.1, minutes=3)    # of so many tokens

A text is read several times, and each time helps less. Too few steps leave something to learn; with
too many, the model learns the text by heart and predicts other text worse. How often is best
depends on the size of the text. Both rules were found by tutorials/experiments/own_text.py.
"""

import math

LEAST_STEPS = 40


def vocabulary(text_bytes):
    """Return how many ids to train on a text of so many bytes: 512, 1024, 2048 or 4096. A longer
    text shows each of many tokens often enough to learn it."""
    return 512 if text_bytes < 2e5 else 1024 if text_bytes < 2e6 else 2048 if text_bytes < 8e6 else 4096


def steps(text_tokens, step_tokens, seconds_per_step, minutes):
    """Return how many steps a text is worth, or as many as fit into the time."""
    epochs = 3.0
    wanted = max(LEAST_STEPS, round(epochs * text_tokens / step_tokens))
    return max(1, min(wanted, round(60 * minutes / seconds_per_step)))
