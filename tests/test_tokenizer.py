"""tokenizer.py against a naive trainer, the `tokenizers` library, tiktoken and transformers."""

import collections
import concurrent.futures
import importlib.util
import json
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import HealthCheck, given, settings, strategies

MODULE = "nanoseek.tokenizer"
contract = pytest.mark.contract
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

END = "<|endoftext|>"
TEXTS = ["The cat sat on the mat, and the other cat sat on the other mat.\n" * 3,
         "那只猫坐在垫子上，另一只猫坐在另一张垫子上。" * 3,
         "def f(x):\n    return x[0] + 12 * f(x[1:])\n" * 3,
         "It's 3:45; don't be late 😀😀 — naïve café\r\n\t\tdone"]
any_text = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=60)


def peers():
    """Return tests/bench/diff_tokenizer.py, which builds the peers' tokenizers."""
    path = pathlib.Path(__file__).parent / "bench" / "diff_tokenizer.py"
    spec = importlib.util.spec_from_file_location("diff_tokenizer", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def diff():
    return peers()


@pytest.fixture(scope="module")
def small(module):
    """A tokenizer that knows a few dozen merges."""
    return module.Tokenizer.train(TEXTS, 330)


def saved(tokenizer, folder):
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    return path


def content(tokenizer):
    """Return what a tokenizer saves: str."""
    with tempfile.TemporaryDirectory() as folder:
        return saved(tokenizer, pathlib.Path(folder)).read_text("utf-8")


def merges_of(tokenizer):
    return json.loads(content(tokenizer))["model"]["merges"]


# Training ----------------------------------------------------------------------------------

@contract
def test_wikipedia_example(module):
    tokenizer = module.Tokenizer.train(["aaabdaaabac"], 259, special_tokens=(), pattern=r".+")
    # aa occurs four times; then ab and (aa)a tie at two, and ab has the smaller ids.
    assert [tokenizer.decode_bytes([i]) for i in (256, 257, 258)] == [b"aa", b"ab", b"aaab"]
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


@contract
@quick
@given(texts=strategies.lists(strategies.text("ab c中😀'1", max_size=40), min_size=1, max_size=8),
       size=strategies.integers(257, 300))
def test_merges_equal_the_naive_ones(module, diff, texts, size):
    texts, pattern = texts + ["a"], r" ?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+"
    counts = collections.Counter(
        chunk for text in texts for chunk in regex.findall(pattern, text))
    expected = diff.naive_merges(counts, size - 257)
    with pytest.warns(UserWarning) if len(expected) < size - 257 else does_not_warn():
        tokenizer = module.Tokenizer.train(texts, size, pattern=pattern)
    names = [bytes([i]) for i in range(256)]
    for a, b in expected:
        names.append(names[a] + names[b])
    assert [tokenizer.decode_bytes([i]) for i in range(len(names))] == names
    assert tokenizer.vocab_size == len(names) + 1


class does_not_warn:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_merges_equal_the_naive_ones_on_random_corpora(module, diff):
    rng = random.Random(3)
    characters, words = diff.common_characters(0x3000), " ".join(TEXTS).split()
    for _ in range(15):
        assert diff.compare_training(module, rng, characters, words) == []


@contract
def test_no_token_is_longer_than_the_bound(module):
    with pytest.warns(UserWarning, match="258 ids"):
        tokenizer = module.Tokenizer.train(["abcabc abcabc"] * 3, 400, max_token_length=2)
    assert tokenizer.encode("abcabc") == tokenizer.encode("abc") * 2  # ab and c
    with pytest.raises(ValueError, match="max_token_length is 0"):
        module.Tokenizer.train(["abc"], 300, max_token_length=0)


@contract
def test_training_knows_no_order_of_texts(module, small):
    def tokens(tokenizer):
        return [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    assert tokens(module.Tokenizer.train(TEXTS[::-1], 330)) == tokens(small)
    assert tokens(module.Tokenizer.train(iter(TEXTS), 330)) == tokens(small)


@contract
def test_stops_early_and_says_so(module):
    with pytest.warns(UserWarning, match="260 ids, not 5000"):
        tokenizer = module.Tokenizer.train(["abcd abcd"], 5000)
    assert tokenizer.vocab_size == 260  # ab, abc and abcd; " abcd" occurs once
    with pytest.warns(UserWarning):
        assert module.Tokenizer.train(["abcd abcd"], 5000, min_count=1).vocab_size == 261


def test_distinct_chunks_are_bounded(module):
    rng = random.Random(0)
    texts = (f"the {rng.randrange(10 ** 9)}x and q{chr(rng.randrange(97, 123)) * 9}"
             for _ in range(3000))
    counts = module.count_chunks(texts, lambda text: text.split(), max_chunks=500)
    assert len(counts) <= 500
    assert counts["the"] == counts["and"] == 3000


def test_progress_is_told(module):
    lines = []
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(3000)]
    module.Tokenizer.train([" ".join(words * 2)], 1400, progress=lines.append)
    assert lines and all(isinstance(line, str) for line in lines)


# Encoding and decoding ---------------------------------------------------------------------

@contract
@quick
@given(text=any_text)
def test_round_trip(small, text):
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert small.decode_bytes(ids) == text.encode()
    assert small.encode_batch([text, "the", text])[2].tolist() == ids


@contract
@quick
@given(text=strategies.text("the cat,猫坐在😀f(x)1 \n", max_size=60))
def test_ids_equal_those_of_naive_merging(module, small, text):
    """In every chunk the earliest merge that fits comes first, and of equal ones the leftmost."""
    number = {small.decode_bytes([i]): i for i in range(329)}
    expected = []
    for chunk in regex.findall(module.DEFAULT_PATTERN, text):
        pieces = [bytes([byte]) for byte in chunk.encode()]
        while pairs := [(number[a + b], at) for at, (a, b) in enumerate(zip(pieces, pieces[1:]))
                        if a + b in number]:
            _, at = min(pairs)
            pieces[at:at + 2] = [pieces[at] + pieces[at + 1]]
        expected += [number[piece] for piece in pieces]
    assert small.encode(text) == expected


@contract
@quick
@given(ids=strategies.lists(strategies.integers(0, 329), max_size=40))
def test_any_ids_decode(small, ids):
    raw = b"".join(small.decode_bytes([i]) for i in ids)
    assert small.decode_bytes(ids) == small.decode_bytes(np.array(ids, np.int64)) == raw
    assert small.decode(ids) == raw.decode("utf-8", "replace")
    assert "".join(small.decode_stream(iter(ids))) == small.decode(ids)


@contract
def test_a_stream_never_shows_half_a_character(small):
    text = "猫 😀 é"
    pieces = [list(small.decode_stream(small.encode(text)[:n])) for n in range(40)]
    for n, shown in enumerate(pieces[:-1]):
        whole = small.decode_bytes(small.encode(text)[:n]).decode("utf-8", "ignore")
        assert "".join(shown).rstrip("\ufffd") == whole
    ids = list(text.encode())
    arriving = filter(None, small.decode_stream(iter(ids)))
    assert next(arriving) == "猫" and "\ufffd" not in "".join(arriving)


@contract
def test_ids_are_bytes_then_merges_then_specials(module, small):
    assert [small.decode_bytes([i]) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert small.special_tokens == {END: 329} and small.eot_id == 329 and small.vocab_size == 330
    two = module.Tokenizer.train(TEXTS, 300, special_tokens=["<a>", END])
    assert two.special_tokens == {"<a>": 298, END: 299} and two.eot_id == 299
    assert module.Tokenizer.train(TEXTS, 300, special_tokens=[]).eot_id is None


@contract
def test_special_tokens_only_where_allowed(module):
    tokenizer = module.Tokenizer.train(TEXTS, 300, special_tokens=["<a>", "<a><b>", END])
    text = f"cat<a><b>{END}<a>"
    plain = tokenizer.encode(text)
    assert max(plain) < 297 and tokenizer.decode(plain) == text
    cat = tokenizer.encode("cat")
    assert tokenizer.encode(text, allowed_special="all") == cat + [298, 299, 297]
    assert tokenizer.encode(text, allowed_special=[END]) == (
        tokenizer.encode("cat<a><b>") + [299] + tokenizer.encode("<a>"))
    assert tokenizer.encode(END, allowed_special=END) == [299]
    assert tokenizer.decode([299, 297]) == f"{END}<a>"
    with pytest.raises(ValueError, match="no special token"):
        tokenizer.encode(text, allowed_special=["<c>"])


@contract
def test_batches(small):
    texts = TEXTS + ["", "x"] * 3
    rows = small.encode_batch(text for text in texts)
    assert all(isinstance(row, np.ndarray) and row.dtype == np.int32 for row in rows)
    assert [row.tolist() for row in rows] == [small.encode(text) for text in texts]
    rows[0][:] = 0  # an array of one's own: the cache must not change with it
    assert small.decode(small.encode(texts[0])) == texts[0]
    assert small.encode_batch([]) == []
    assert small.encode("") == [] and small.decode([]) == ""


def test_processes_give_the_same_ids(module, small):
    texts = TEXTS * 3 + ["last"]
    rows = small.encode_batch(texts, processes=2)
    assert [row.tolist() for row in rows] == [small.encode(text) for text in texts]


def test_threads_share_a_tokenizer(module):
    rng = random.Random(2)
    texts = ["".join(rng.choices("abcdef ,的一是", k=300)) for _ in range(60)]
    tokenizer = module.Tokenizer.train(texts, 400)
    expected = [pickle.loads(pickle.dumps(tokenizer)).encode(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_pickles(small):
    assert pickle.loads(pickle.dumps(small)).encode(TEXTS[1]) == small.encode(TEXTS[1])


def test_the_cache_is_bounded_and_survives_errors(module, monkeypatch):
    tokenizer = module.Tokenizer.train(TEXTS, 300)
    rng = random.Random(1)
    texts = ["".join(rng.choices("catmo 的", k=200)) for _ in range(50)]
    expected = [tokenizer.encode(text) for text in texts]
    monkeypatch.setattr(module, "_CACHE", 500)
    assert [tokenizer.encode(text) for text in texts] == expected
    assert len(tokenizer._numbers) < 500
    for text, error in (("lone \ud800 surrogate", ValueError), ("new words here", OSError)):
        with monkeypatch.context() as patch:
            if error is OSError:  # as if interrupted half-way
                patch.setattr(tokenizer, "_merge", lambda chunks: (_ for _ in ()).throw(OSError()))
            with pytest.raises(error):
                tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("new words here")) == "new words here"
    assert [tokenizer.encode(text) for text in texts] == expected


def test_large_texts_are_cut_bit_by_bit(module, monkeypatch):
    tokenizer = module.Tokenizer.train(TEXTS, 300)
    text = "".join(TEXTS) * 5
    whole = tokenizer.encode(text)
    tokenizer = module.Tokenizer.train(TEXTS, 300)
    monkeypatch.setattr(module, "_LARGE", 100)
    monkeypatch.setattr(module, "_GROUP", 30)
    assert tokenizer.encode(text) == whole
    assert [r.tolist() for r in tokenizer.encode_batch([text, "a", text])][2] == whole


def test_long_chunks(module, small):
    peer = tokenizers.Tokenizer.from_str(content(small))
    rng = random.Random(4)
    for text in ("a" * 5000, "the" * 3000, "猫" * 2000, "".join(rng.choices("theca", k=60_000))):
        assert small.encode(text) == peer.encode(text).ids
        assert small.encode(text) == small.encode_batch(["so many chunks " * 9, text])[1].tolist()


# Against the peers -------------------------------------------------------------------------

def test_every_style_encodes_as_its_library_does(module, diff, tmp_path):
    rng = random.Random(11)
    texts = diff.training_texts()[:400]
    characters, words = diff.common_characters(0x20000), " ".join(texts).split()
    strings = [diff.make_string(rng, characters, words) for _ in range(150)]
    for name, style in diff.styles().items():
        path = diff.build(style, texts, tmp_path, vocab_size=600)
        pattern = module.GPT2_PATTERN if name == "gpt2" else None
        assert diff.compare_strings(module, path, strings, pattern) == [], name
    path = str(saved(module.Tokenizer.train(texts, 600), tmp_path))
    assert diff.compare_strings(module, path, strings, module.DEFAULT_PATTERN) == []


@quick
@given(text=any_text)
def test_tokenizers_opens_our_file(small, diff, text):
    peer = tokenizers.Tokenizer.from_str(content(small))
    known = "".join(c for c in text if c.isascii() or "一" <= c <= "鿿" or c in "éï—😀’")
    assert peer.encode(known + END).ids == small.encode(known + END, allowed_special="all")
    assert peer.get_vocab_size() == small.vocab_size
    assert peer.decode(small.encode(known)) == known


def test_transformers_opens_our_file(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = saved(small, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert fast.encode(text) == auto.encode(text) == small.encode(text)
        assert auto.decode(small.encode(text)) == text
    assert auto.eos_token_id == small.eot_id


def test_a_letter_newer_than_the_other_library_is_cut_alike(module, small, diff):
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    letters = set(regex.findall(r"\p{L}", everything))
    newer = sorted(letters - diff._in_tokenizers(r"\p{L}", everything))[::7]
    texts = [f"a {c}b" for c in newer] or ["a b"]
    peer = tokenizers.Tokenizer.from_str(content(small))
    assert [row.tolist() for row in small.encode_batch(texts)] == [
        row.ids for row in peer.encode_batch(texts)]


# Patterns ----------------------------------------------------------------------------------

def chunks(module, pattern, text):
    tokenizer = module.Tokenizer.train(["x"], 256, special_tokens=[], pattern=pattern)
    return list(tokenizer._split(text))


def pieces(patterns, text):
    split = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in patterns])
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def test_the_default_cut(module):
    text = "Say (hello) to 42 cats,\n\n  don't… 她说：“你好”12。\n한국어 नमस्ते カタカナ"
    assert chunks(module, module.DEFAULT_PATTERN, text) == [
        "Say", " (", "hello", ")", " to", " ", "4", "2", " cats", ",\n\n", " ", " don", "'t",
        "…", " ", "她说", "：“", "你好", "”", "1", "2", "。\n", "한국어", " नमस्ते", " ", "カタカナ"]
    assert pieces([module.DEFAULT_PATTERN], text) == chunks(module, module.DEFAULT_PATTERN, text)


def test_patterns_run_one_after_another(module, diff):
    text = "café {x}\nline two  \n  end 12中文。"
    in_turn = chunks(module, diff.DEEPSEEK, text)
    assert in_turn == pieces(diff.DEEPSEEK, text)
    assert in_turn != chunks(module, "|".join(diff.DEEPSEEK), text)  # one alternation is not that
    # DeepSeek's `:-~` holds the ASCII letters.
    assert chunks(module, diff.DEEPSEEK[2], "café") == ["caf", "é"] == pieces(
        diff.DEEPSEEK[2:3], "café")


def test_a_dollar_matches_at_line_ends(module):
    for text in ("one  \ntwo  ", "one  \n", "  \n\n x", "😀  \n😀  "):
        assert chunks(module, r"\s+$", text) == pieces([r"\s+$"], text)
    assert chunks(module, r" +$", "a  \nb") == ["a", "  ", "\nb"]


@contract
def test_what_the_pattern_leaves_out_is_kept(module):
    tokenizer = module.Tokenizer.train(["ab12cd"] * 3, 260, pattern=r"\d+")
    assert tokenizer.decode(tokenizer.encode("no digits, 猫")) == "no digits, 猫"
    assert len(tokenizer.encode("ab12cd")) == 3  # ab, cd and 12 are merges, so they are chunks


def test_odd_patterns_lose_nothing(module):
    for pattern in (r"", r"x*", r"(?=b)", r"(a)|b"):
        assert "".join(chunks(module, pattern, "abcxx猫😀")) == "abcxx猫😀"


@quick
@given(text=strategies.text(strategies.sampled_from("aZ é'ſK.,-9½²٣中あ한\n\r\t\u00a0\u3000\u2028😀𝕏𠀀𝟘")))
def test_both_engines_cut_alike(module, diff, text):
    wide = text + "\U0001F600"  # beyond U+FFFF: `regex` does it, not `re`
    for pattern in (module.DEFAULT_PATTERN, module.GPT2_PATTERN, diff.LLAMA3):
        split = module._splitter(pattern)
        narrow = "".join(c for c in text if c <= "\uffff")
        exact = regex.compile(pattern, regex.V1 | regex.M)
        assert list(split(narrow)) == exact.findall(narrow)
        assert list(split(wide)) == exact.findall(wide)


@pytest.mark.parametrize("pattern", [r"\w+", r"[[:punct:]]+", r"(?m)^a", r"\p{N}{1,3}+", r"[\s--a]",
                                     r"\h+", r"(a)\1", "a(", "[a"])
def test_patterns_that_would_mean_something_else(module, pattern):
    with pytest.raises(ValueError, match="the split pattern"):
        module.Tokenizer.train(TEXTS, 300, pattern=pattern)


# The file ----------------------------------------------------------------------------------

@contract
def test_a_custom_pattern_survives(module, tmp_path):
    for pattern in (r"\p{L}+|\s|.", [r"[\r\n]", r"\p{N}", r" ?\p{L}+"]):
        first = module.Tokenizer.train(TEXTS, 310, special_tokens=["<x>"], pattern=pattern)
        again = module.Tokenizer.load(saved(first, tmp_path))
        assert [again.encode(t, "all") for t in TEXTS + ["a<x>"]] == [
            first.encode(t, "all") for t in TEXTS + ["a<x>"]]
        assert (again.vocab_size, again.special_tokens) == (310, {"<x>": 309})
        assert content(again) == content(first)


def test_saving_is_all_or_nothing(small, tmp_path, monkeypatch):
    path = saved(small, tmp_path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        args[1].write("half")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError):
        small.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def change(spec, place, value):
    *places, last = place.split(".")
    for name in places:
        spec = spec[int(name) if name.isdigit() else name]
    spec[last] = value


@pytest.mark.parametrize("place, value, word", [
    ("model.type", "Unigram", "Unigram"),
    ("model.type", "WordPiece", "WordPiece"),
    ("model.dropout", 0.1, "dropout"),
    ("model.byte_fallback", True, "byte_fallback"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
    ("truncation", {"max_length": 5}, "truncation"),
    ("padding", {"pad_id": 0}, "padding"),
    ("normalizer", {"type": "Lowercase"}, "Lowercase"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}, "StripAccents"),
    ("pre_tokenizer", None, "ByteLevel"),
    ("pre_tokenizer", {"type": "Metaspace"}, "ByteLevel"),
    ("pre_tokenizer.pretokenizers.0.behavior", "Removed", "Removed"),
    ("pre_tokenizer.pretokenizers.0.behavior", "MergedWithNext", "MergedWithNext"),
    ("pre_tokenizer.pretokenizers.0", {"type": "Whitespace"}, "Whitespace"),
    ("added_tokens.0.lstrip", True, "lstrip"),
    ("added_tokens.0.single_word", True, "single_word"),
])
def test_what_is_not_supported_is_named(module, small, tmp_path, place, value, word):
    spec = json.loads(content(small))
    if place == "pre_tokenizer.pretokenizers.0":
        spec["pre_tokenizer"]["pretokenizers"][0] = value
    else:
        change(spec, place, value)
    (tmp_path / "t.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(ValueError, match=word):
        module.Tokenizer.load(tmp_path / "t.json")


def damage(spec):
    yield b""
    yield b"\xff\xfe\x00 not text"
    yield b"[]"
    yield b'{"model": {}}'
    yield json.dumps(spec).encode()[:-400]
    for name in ("pre_tokenizer", "model"):
        yield json.dumps({k: v for k, v in spec.items() if k != name}).encode()
    for name in ("vocab", "merges"):
        yield json.dumps({**spec, "model": {k: v for k, v in spec["model"].items()
                                            if k != name}}).encode()
    model = spec["model"]
    for changed in ({"merges": model["merges"] + ["q zz"]}, {"merges": ["a"]}, {"merges": [3]},
                    {"vocab": {k: v for k, v in model["vocab"].items() if k != "a"}},
                    {"vocab": {**model["vocab"], "zz": "x"}}, {"vocab": []}):
        yield json.dumps({**spec, "model": {**model, **changed}}).encode()
    yield json.dumps({**spec, "added_tokens": spec["added_tokens"] * 2}).encode()
    yield json.dumps({**spec, "added_tokens": [{"content": "x"}]}).encode()
    yield json.dumps({**spec, "added_tokens": [{"content": "x", "id": 10 ** 15}]}).encode()
    yield b"[" * 200_000
    for odd in (10 ** 12, -1, True, spec["model"]["vocab"]["b"]):
        vocab = {**spec["model"]["vocab"], "a": odd}
        yield json.dumps({**spec, "model": {**model, "vocab": vocab}}).encode()


def test_damaged_files_are_refused(module, small, tmp_path):
    path = tmp_path / "tokenizer.json"
    for number, damaged in enumerate(damage(json.loads(content(small)))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="tokenizer.json"):
            module.Tokenizer.load(path)
            pytest.fail(f"damage {number} was accepted")
    with pytest.raises(OSError):
        module.Tokenizer.load(tmp_path / "absent.json")


# Bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, words", [
    (dict(vocab_size=256), "256 bytes and 1 special"),
    (dict(vocab_size=-1), "too small"),
    (dict(texts=[]), "no text"),
    (dict(texts=["", ""]), "no text"),
    (dict(texts=["a", b"b"]), "bytes"),
    (dict(texts=["a", None]), "NoneType"),
    (dict(texts="one text"), r"\[text\]"),
    (dict(texts=["half \udc00 a pair"]), "U\\+DC00"),
    (dict(special_tokens=["<a>", "<a>"]), "given once"),
    (dict(special_tokens=[""]), "special token"),
    (dict(special_tokens=["a"]), "ordinary token"),
    (dict(special_tokens=[7]), "special token"),
])
def test_training_refuses(module, arguments, words):
    with pytest.raises(ValueError, match=words):
        module.Tokenizer.train(**{"texts": TEXTS, "vocab_size": 300, **arguments})


def test_encoding_and_decoding_refuse(small):
    for text, words in ((b"bytes", "bytes"), (None, "NoneType"), ("a\ud83d", "U\\+D83D")):
        with pytest.raises(ValueError, match=words):
            small.encode(text)
    for texts in ("one text", None):
        with pytest.raises(ValueError, match=r"\[text\]"):
            small.encode_batch(texts)
    for ids in ([330], [-1], [3, 10 ** 9], ["a"], [[1, 2]], [1.5], 7, np.array([[1], [2]])):
        with pytest.raises(ValueError, match="from 0 to 329"):
            small.decode(ids)
        if not isinstance(ids, int):
            with pytest.raises((ValueError, TypeError)):
                list(small.decode_stream(ids))


# Seeing it ---------------------------------------------------------------------------------

def test_compare_counts(module, small):
    text = "猫 cat"
    row = module.compare({"mine": small}, text, hidden_size=10, num_hidden_layers=2)[0]
    tokens = len(small.encode(text))
    assert row["tokens"] == tokens and row["vocab_size"] == 330
    assert row["bytes_per_token"] == 7 / tokens and row["tokens_per_character"] == tokens / 5
    weights = 12 * 2 * 10 * 10 + 330 * 10
    assert row["flops"] == 6 * weights * tokens and row["head_share"] == 3300 / weights


def test_show_cuts_where_encode_does(module, small):
    text = "那 the cat\n龘"
    shown = module.show(small, text, colour=False)
    assert len(shown.split("|")) == len(small.encode(text))
    assert shown.replace("|", "") == r"那␣the␣cat⏎\xe9\xbe\x98"  # a character in three tokens
    coloured = module.show(small, text)
    assert regex.sub("\x1b\\[[0-9;]*m", "", coloured) == shown.replace("|", "")


def test_describe_names_merges_and_unused_tokens(module, small):
    documents = [{"text": "那只猫坐在垫子上", "source": "zh"}, {"text": "The cat", "source": "en"}]
    lines = list(module.describe(small, documents, count=100))
    report = "\n".join(lines)
    first = small.decode_bytes([256]).decode("utf-8", "backslashreplace").replace(" ", "␣")
    assert f"     256  " in report and f"→ {first}" in report
    assert "猫" in report
    en = len(small.encode("The cat"))
    assert f"en (other): 7 bytes, {7 / en:.2f} bytes and {7 / en:.2f} characters per token" in report
    used = {i for d in documents for i in small.encode(d["text"])}
    assert f"{73 - sum(256 <= i < 329 for i in used)} merged tokens never occur" in lines[-1]


def run(*args, cwd):
    return subprocess.run([sys.executable, "-m", "nanoseek.tokenizer", *map(str, args)], cwd=cwd,
                          capture_output=True, text=True, encoding="utf-8",
                          env={**__import__("os").environ, "PYTHONUTF8": "1", "PYTHONPATH":
                               str(pathlib.Path(__file__).parents[1])})


def test_command_line(module, tmp_path):
    rows = [{"text": text, "source": "s", "split": "train"} for text in TEXTS]
    rows.append({"text": "held " * 50, "source": "s", "split": "held_out"})
    documents, path = tmp_path / "clean.jsonl", tmp_path / "my tokenizer.json"
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("train", documents, path, "--vocab_size", 330, cwd=tmp_path).returncode == 0
    tokenizer = module.Tokenizer.load(path)
    assert merges_of(tokenizer) == merges_of(module.Tokenizer.train(TEXTS, 330))
    assert run("encode", path, documents, tmp_path / "ids.npy", cwd=tmp_path).returncode == 0
    ids = [i for row in rows for i in tokenizer.encode(row["text"]) + [tokenizer.eot_id]]
    assert np.load(tmp_path / "ids.npy").tolist() == ids
    seen = run("inspect", path, documents, "--text", "那只猫", cwd=tmp_path)
    assert seen.returncode == 0 and "猫" in seen.stdout and "never occur" in seen.stdout
    compared = run("compare", documents, path, saved(tokenizer, tmp_path), cwd=tmp_path)
    assert compared.returncode == 0 and len(compared.stdout.splitlines()) == 3


def test_command_line_answers_bad_input_in_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    (tmp_path / "held.jsonl").write_text('{"text": "a text", "split": "held_out"}\n')
    (tmp_path / "good.jsonl").write_text('{"text": "a good text, a good text"}\n')
    run("train", "good.jsonl", "ours.json", "--vocab_size", "258", cwd=tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("good.jsonl", "ours.json")]
    for args, word in ((("train", "absent.jsonl", "t.json"), "absent"),
                       (("train", "bad.jsonl", "t.json"), "line 2"),
                       (("train", "held.jsonl", "t.json"), "empty or held out"),
                       (("inspect", "bad.jsonl"), "tokenizer.json"),
                       (("train", "good.jsonl", "good.jsonl"), "read and written"),
                       (("train", "t.json", "good.jsonl"), ".json"),
                       (("train", "good.jsonl", "t.json", "--vocab_size", "5000000000"), "large"),
                       (("encode", "ours.json", "good.jsonl", "ours.json"), "read and written"),
                       (("compare", "good.jsonl", "ours.json", "--hidden_size", "0"), "at least 1"),
                       (("inspect",), "PATH"), (("train", "a"), "1 path")):
        done = run(*args, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr
    assert not (tmp_path / "t.json").exists()
    assert before == [(tmp_path / name).read_bytes() for name in ("good.jsonl", "ours.json")]
