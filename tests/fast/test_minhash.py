"""fast/minhash.py gives the signatures of duplicates.py, whatever lies in one batch."""

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from nanoseek import duplicates

MODULE = "nanoseek.fast.minhash"


def make_texts(seed):
    """Texts of all lengths, empty ones, equal ones, Chinese, and grams that only half exist."""
    rng = random.Random(seed)
    texts = ["", "a", "abcd", "abcde", "", "天地", "天地玄黄宇宙洪荒" * 9, "\0", "a\0b", "\ud800x"]
    for alphabet in ("abcdefghij klmnop", "天地玄黄宇宙洪荒日月盈昃", "ab"):
        texts += ["".join(rng.choices(alphabet, k=rng.randrange(900))) for _ in range(9)]
    return texts + texts[3:9]


@settings(deadline=None)
@given(texts=strategies.lists(strategies.text(max_size=40)))
def test_signatures_are_those_of_the_chapter(module, texts):
    assert np.array_equal(module.minhash_signatures(texts), duplicates.minhash_signatures(texts))


@pytest.mark.parametrize("batch", [10, 300, 1 << 17])
def test_batches_leave_no_trace(module, monkeypatch, batch):
    texts = make_texts(batch)
    monkeypatch.setattr(module, "BATCH", batch)
    fast, plain = (m.minhash_signatures(texts) for m in (module, duplicates))
    assert fast.dtype == plain.dtype and np.array_equal(fast, plain)


def test_a_text_longer_than_a_batch(module):
    text = "".join(random.Random(4).choices("etaoin shrdlu", k=2 * module.BATCH + 7))
    assert np.array_equal(module.minhash_signatures(["x", text, "y"]),
                          duplicates.minhash_signatures(["x", text, "y"]))
