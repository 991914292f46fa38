"""passages.py against naive truth: all substrings."""

import random

from hypothesis import given, settings, strategies

from nanoseek.corpus.cleaning import cut

MODULE = "nanoseek.corpus.passages"


def random_text(rng, length, alphabet):
    return "".join(rng.choices(alphabet, k=length))


@settings(max_examples=40, deadline=None)
@given(seed=strategies.integers(0, 10**6))
def test_passages_are_those_that_an_earlier_text_has(module, seed):
    rng = random.Random(seed)
    alphabet = "天地玄黄宇宙洪荒日月盈昃"  # no words to pull spans in to
    # Not just below the limit of 32 characters: of several copies one may be over it by chance.
    lengths = [*range(10, 27), *range(32, 60)]
    shared = [random_text(rng, rng.choice(lengths), alphabet) for _ in range(3)]
    texts = ["".join(random_text(rng, rng.randrange(40), alphabet) + rng.choice(shared)
                     for _ in range(rng.randrange(4))) for _ in range(4)]
    for number, spans in enumerate(module.repeated_passages(texts, 96)):
        text, before = texts[number], texts[:number]
        for start, end in spans:
            assert any(text[start:end] in earlier for earlier in before)
        for start in range(len(text) - 31):  # 32 characters are 96 bytes
            if any(text[start:start + 32] in earlier for earlier in before):
                assert any(a < start + 32 and start < b for a, b in spans)


def test_a_passage_is_cut_at_whole_words(module):
    passage = "the long notice that every page of this site carries at its end, word by word"
    texts = [f"First storms came in; {passage}; then calm.", f"Later warms; {passage}; now rest."]
    (empty, [(start, end)]) = module.repeated_passages(texts, 64)
    assert empty == [] and texts[1][start:end].strip("; ").startswith("the long notice")
    left = cut(texts[1], [(start, end)])
    assert left.startswith("Later warms") and left.endswith("now rest.")


def test_chunks_leave_no_trace_in_passages(module, monkeypatch):
    rng = random.Random(2)
    texts = [random_text(rng, rng.randrange(1, 3000), "abcdefghij klmnop") for _ in range(20)]
    texts += [text[100:] + other[:500] for text, other in zip(texts, texts[5:])]
    passages = module.repeated_passages(texts, 64)
    assert sum(map(len, passages)) >= 15
    monkeypatch.setattr(module, "CHUNK", 300)
    assert module.repeated_passages(texts, 64) == passages


def test_a_passage_is_as_long_in_every_script(module):
    rng = random.Random(5)
    for alphabet, weight in (("abcdefghij klmnop", 1), ("दनमकरत सलपयजब", 1), ("абвгдежзий клмно", 1),
                             ("天地玄黄宇宙洪荒日月盈昃", 3), ("가나다라마바사아자차카타", 3)):
        for size, found in ((270, 0), (330, 1)):
            shared = random_text(rng, size // weight, alphabet)
            assert module.letters(shared) == size
            texts = [f"{random_text(rng, 90, alphabet)}\n{shared}\n{random_text(rng, 90, alphabet)}"
                     for _ in range(2)]
            spans = module.repeated_passages(texts, 300)
            assert list(map(len, spans)) == [0, found], (alphabet, size)


def test_quotations_are_those_that_a_naive_search_finds(module, monkeypatch):
    rng = random.Random(7)
    quotes = [random_text(rng, rng.randrange(32, 90), "天地abc ") for _ in range(40)]
    texts = [random_text(rng, 200, "天地abc ") + rng.choice(quotes) + random_text(rng, 50, "ab")
             for _ in range(60)]
    naive = {(number, quote) for number, text in enumerate(texts) for quote in quotes if quote in text}
    for size in (module.CHUNK, 300):
        monkeypatch.setattr(module, "CHUNK", size)
        found = {pair for pair in module.quotations(texts, quotes) if pair[1] in texts[pair[0]]}
        assert found == naive and len(naive) >= 60


def test_passages_of_little_and_of_one_pattern(module):
    assert module.repeated_passages([]) == []
    assert module.repeated_passages(["", "short", ""]) == [[], [], []]
    pattern, ones = "天地" * 3000, "人" * 1000
    assert module.repeated_passages([pattern, ones, "x" + pattern, ones]) == [
        [], [], [(1, 6001)], [(0, 1000)]]
