"""fast/bpe.py is the chapter, sooner: same merges, same ids, same files, on whatever text."""

import concurrent.futures
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from nanoseek.fast import bpe, encode
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.tokenizer import GPT2_PATTERN, Tokenizer, learn_merges

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = ["The cat sat on the mat, and the other cat sat on the other mat.\n" * 3,
         "那只猫坐在垫子上，另一只猫坐在另一张垫子上。" * 3,
         "def f(x):\n    return x[0] + 12 * f(x[1:])\n" * 3,
         "It's 3:45; don't be late 😀😀 — naïve café\r\n\t\tdone", "", "aaaaaaa" * 50]


@pytest.fixture(scope="module")
def pair():
    return Tokenizer.train(TEXTS, 330), FastTokenizer.train(TEXTS, 330)


@quick
@given(chunks=strategies.lists(strategies.text("ab c中\0😀", min_size=1, max_size=30), max_size=12),
       times=strategies.integers(1, 5), n_merges=strategies.integers(0, 60),
       min_count=strategies.integers(1, 4), bound=strategies.sampled_from([None, 1, 2, 3, 5, 9]))
def test_merges_equal_the_chapters(chunks, times, n_merges, min_count, bound):
    counts = {chunk: times + i % 3 for i, chunk in enumerate(chunks)}
    expected = learn_merges(counts, n_merges, min_count, None, bound)
    assert bpe.learn_merges(counts, n_merges, min_count, None, bound) == expected


@pytest.mark.parametrize("chunks", [
    [], ["a"], ["aa"], ["a" * 1000], ["ab" * 300, "ba" * 300], ["abab", "baba", "abba"],
    ["\0\0\0", "\0a\0a"], ["猫" * 40, "狗" * 40], ["abcabc", "bcabca"] * 2])
def test_merges_equal_the_chapters_in_runs_and_ties(chunks):
    counts = {chunk: 2 for chunk in chunks}
    for n_merges in (1, 5, 10 ** 6):
        assert bpe.learn_merges(counts, n_merges) == learn_merges(counts, n_merges)


@pytest.mark.parametrize("settings", [
    {}, {"pattern": GPT2_PATTERN}, {"pattern": [r"\p{N}", r" ?\p{L}+"]}, {"min_count": 3},
    {"max_token_length": 3}, {"special_tokens": ["<a>", "<a><b>"]}, {"pattern": r".+"}])
def test_files_and_ids_equal_the_chapters(tmp_path, settings):
    plain, fast = (kind.train(TEXTS, 310, **settings) for kind in (Tokenizer, FastTokenizer))
    for tokenizer, name in ((plain, "plain"), (fast, "fast")):
        tokenizer.save(tmp_path / name)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "fast").read_bytes()
    loaded = FastTokenizer.load(tmp_path / "plain")
    assert type(loaded) is FastTokenizer and type(Tokenizer.load(tmp_path / "fast")) is Tokenizer
    text = "<a><b>" + "".join(TEXTS)
    for allowed in ((), "all"):
        expected = plain.encode(text, allowed)
        assert fast.encode(text, allowed) == loaded.encode(text, allowed) == expected
    assert [row.tolist() for row in fast.encode_batch(["", text])] == [[], plain.encode(text)]


@quick
@given(text=strategies.text(max_size=80), other=strategies.text("the cat,猫坐在😀f(x)1 \n"))
def test_ids_equal_the_chapters(pair, text, other):
    plain, fast = pair
    try:
        text.encode()
    except UnicodeEncodeError:
        for tokenizer in pair:
            with pytest.raises(ValueError):
                tokenizer.encode(text)
        return
    rows = fast.encode_batch([text, other, text + other])
    assert [row.tolist() for row in rows] == [plain.encode(t) for t in (text, other, text + other)]
    assert fast.decode(rows[2]) == text + other
    assert all(row.dtype == np.int32 for row in rows)


def test_long_chunks_equal_the_chapters(pair):
    plain, fast = pair
    rng = random.Random(4)
    for text in ("a" * 5000, "the" * 3000, "猫" * 2000, "".join(rng.choices("theca", k=20_000))):
        expected = plain.encode(text)
        assert fast.encode(text) == expected
        assert fast.encode_batch(["so many chunks " * 9, text])[1].tolist() == expected


def test_without_merges_and_without_texts():
    bare = FastTokenizer([], special_tokens=[])
    assert bare.encode("ab") == [97, 98] and bare.encode("") == []
    assert bare.encode_batch([]) == [] and [r.tolist() for r in bare.encode_batch([""])] == [[]]
    with pytest.raises(ValueError, match=r"\[text\]"):
        bare.encode_batch("one text")
    for text in (b"bytes", None):
        with pytest.raises(ValueError, match="wants text"):
            bare.encode(text)
    with pytest.raises(ValueError, match="no text"):
        FastTokenizer.train(["", ""], 300)


def test_rows_are_arrays_of_their_own(pair):
    _, fast = pair
    rows = fast.encode_batch(TEXTS)
    rows[0][:] = 0
    assert fast.decode(fast.encode(TEXTS[0])) == TEXTS[0]


def test_it_can_be_pickled_and_shared_by_threads():
    rng = random.Random(2)
    texts = ["".join(rng.choices("abcdef ,的一是", k=300)) for _ in range(60)]
    tokenizer = FastTokenizer.train(texts, 400)
    expected = [pickle.loads(pickle.dumps(tokenizer)).encode(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_large_texts_are_cut_bit_by_bit(monkeypatch):
    text = "".join(TEXTS) * 5
    whole = FastTokenizer.train(TEXTS, 300).encode(text)
    tokenizer = FastTokenizer.train(TEXTS, 300)
    monkeypatch.setattr(encode, "LARGE", 100)
    assert tokenizer.encode(text) == whole
    assert [r.tolist() for r in tokenizer.encode_batch([text, "a", text])][2] == whole
