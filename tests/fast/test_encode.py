"""fast/encode.py: patterns for another engine, the table of pairs, and many chunks merged at once."""

import importlib.util
import pathlib
import random

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, given, settings, strategies

from nanoseek.fast import encode
from nanoseek.tokenizer import DEFAULT_PATTERN, GPT2_PATTERN, Tokenizer

path = pathlib.Path(__file__).parents[1] / "bench" / "diff_tokenizer.py"
spec = importlib.util.spec_from_file_location("diff_tokenizer", path)
diff = importlib.util.module_from_spec(spec)
spec.loader.exec_module(diff)

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(text=strategies.text(strategies.sampled_from("aZ é'ſK.,-9½²٣中あ한\n\r\t\u00a0\u3000\u2028😀𝕏𠀀𝟘")))
def test_both_engines_cut_alike(text):
    wide = text + "\U0001F600"  # beyond U+FFFF: `regex` does it, not `re`
    for pattern in (DEFAULT_PATTERN, GPT2_PATTERN, diff.LLAMA3):
        split = encode.splitter(pattern)
        narrow = "".join(c for c in text if c <= "\uffff")
        exact = regex.compile(pattern, regex.V1 | regex.M)
        assert list(split(narrow)) == exact.findall(narrow)
        assert list(split(wide)) == exact.findall(wide)


@pytest.mark.parametrize("pattern", [
    r"", r"x*", r"(?=b)", r"(a)|b", r"\s+$", r"[a-c[x-z]]+", r"[\p{L}&&[a-m]]+", r"\[.\]", r"[\[\]]+",
    r"[^\]a]+", r".", r"\p{Han}+|.", r"(?i:ab)+", r"\p{L}{1,3}", *diff.DEEPSEEK])
def test_cuts_equal_the_chapters(pattern):
    plain = Tokenizer([], pattern=pattern)
    rng = random.Random(6)
    for _ in range(60):
        text = "".join(rng.choices("abcmnxyzABß[]()猫坐1٣ \n.", k=rng.randrange(1, 30)))
        assert [*encode.splitter(pattern)(text)] == plain.split(text)


def test_the_table_knows_its_pairs_and_no_others():
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 4000):
        pairs = rng.permutation(np.unique(rng.integers(0, 1 << 40, count)))
        table = encode.PairTable({divmod(pair, 1 << 32): 256 + i
                                  for i, pair in enumerate(pairs.tolist())})
        found = table.find(pairs >> 32, pairs & encode.ID)
        assert (found >> 32).tolist() == [*range(256, 256 + len(pairs))]
        others = np.setdiff1d(rng.integers(0, 1 << 40, 5000), pairs)
        assert set(table.find(others >> 32, others & encode.ID).tolist()) == {encode.NONE}
        assert table.find(np.array([encode.WALL, 97]), np.array([97, encode.WALL])).min() \
            == encode.NONE  # a wall never merges


@quick
@given(chunks=strategies.lists(strategies.text("the cat猫坐\0", min_size=1, max_size=30),
                               min_size=1, max_size=20), long=strategies.sampled_from([0, 12, 256]))
def test_chunks_merge_as_in_the_chapter(chunks, long):
    plain = Tokenizer([(116, 104), (256, 101), (104, 101), (97, 116), (99, 259), (32, 260), (0, 0),
                       (262, 0), (229, 157)])
    table = encode.PairTable(plain.merges)
    sizes = np.array([*map(len, plain.tokens.values()), 1])
    before, encode.LONG = encode.LONG, long
    try:
        ids, counts = encode.merge_chunks([c.encode() for c in chunks], table, sizes)
    finally:
        encode.LONG = before
    found = [part.tolist() for part in np.split(ids, np.cumsum(counts))]
    assert found == [list(plain.merge(chunk)) for chunk in chunks] + [[]]
