"""How long to train on a text of the reader's own, and with how large a vocabulary.

    vocabulary(1_100_000)                          # ids for a text of so many bytes
    steps(sample, 383_000, 2048, 0.1, minutes=3)   # of a text of so many tokens

A text is read several times, and each time teaches less. Too few steps leave something to learn;
with too many the model learns the text by heart, and predicts other text worse. How often is best
depends on how much of the text is rule and how much is surprise: code, which repeats its forms, is
read more often than poems. zlib tells them apart. Trials: tutorials/experiments/own_text.py."""

import zlib

SAMPLE = 250_000  # tokens of a text that are compressed
EPOCHS = 1.4  # for each time that zlib makes the text smaller
LEAST_STEPS = 15


def vocabulary(text_bytes):
    """Return how many ids to train: the longer a text, the more tokens occur often enough."""
    return next((size for size, most in ((512, 6e4), (1024, 2e6), (2048, 8e6))
                 if text_bytes <= most), 4096)


def steps(sample, text_tokens, step_tokens, seconds_per_step, minutes):
    """Return the steps that a text is worth, whose first bytes `sample` is, or time allows."""
    epochs = EPOCHS * len(sample) / len(zlib.compress(sample))
    worth, possible = epochs * text_tokens / step_tokens, 60 * minutes / seconds_per_step
    return max(LEAST_STEPS, round(min(worth, possible)))
