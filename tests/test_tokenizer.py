"""tokenizer.py against a naive trainer, the `tokenizers` library, tiktoken and transformers.

What is made to be fast is held to this chapter in tests/fast, others' files in tests/lab.
"""

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
        assert diff.compare_training(module.learn_merges, rng, characters, words) == []


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


def test_threads_share_a_tokenizer(module):
    rng = random.Random(2)
    texts = ["".join(rng.choices("abcdef ,的一是", k=300)) for _ in range(60)]
    tokenizer = module.Tokenizer.train(texts, 400)
    expected = [pickle.loads(pickle.dumps(tokenizer)).encode(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


def test_pickles(small):
    assert pickle.loads(pickle.dumps(small)).encode(TEXTS[1]) == small.encode(TEXTS[1])


def test_long_chunks(module, small):
    peer = tokenizers.Tokenizer.from_str(content(small))
    rng = random.Random(4)
    for text in ("a" * 5000, "the" * 3000, "猫" * 2000, "".join(rng.choices("theca", k=20_000))):
        assert small.encode(text) == peer.encode(text).ids
        assert small.encode(text) == small.encode_batch(["so many chunks " * 9, text])[1].tolist()


# Against the peers -------------------------------------------------------------------------

def test_our_file_encodes_as_its_libraries_do(module, diff, tmp_path):
    rng = random.Random(11)
    texts = diff.training_texts()[:400]
    characters, words = diff.common_characters(0x20000), " ".join(texts).split()
    strings = [diff.make_string(rng, characters, words) for _ in range(150)]
    path = str(saved(module.Tokenizer.train(texts, 600), tmp_path))
    assert diff.compare_strings(module.Tokenizer, path, strings, module.DEFAULT_PATTERN) == []



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
    return list(tokenizer.split(text))


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
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError):
        small.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


# Bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, words", [
    (dict(vocab_size=256), "give 257"),
    (dict(vocab_size=-1), "is -1"),
    (dict(texts=[]), "no text"),
    (dict(texts=["", ""]), "no text"),
    (dict(texts=["a", b"b"]), "bytes"),
    (dict(texts=["a", None]), "NoneType"),
    (dict(texts="one text"), r"\[text\]"),
    (dict(texts=["half \udc00 a pair"]), "udc00"),
    (dict(special_tokens=["<a>", "<a>"]), "given once"),
    (dict(pattern=["a", "b"], max_token_length=-3), "at least 1"),
    (dict(special_tokens=[""]), "special token"),
    (dict(special_tokens=["a"]), "ordinary token"),
    (dict(special_tokens=[7]), "special token"),
])
def test_training_refuses(module, arguments, words):
    with pytest.raises(ValueError, match=words):
        module.Tokenizer.train(**{"texts": TEXTS, "vocab_size": 300, **arguments})


def test_encoding_and_decoding_refuse(small):
    for text, words in ((b"bytes", "bytes"), (None, "NoneType"), ("a\ud83d", "ud83d")):
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


# The command -------------------------------------------------------------------------------

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
    plain = tmp_path / "plain.json"
    done = run("train", documents, plain, "--vocab_size", 330, "--fast", "false", cwd=tmp_path)
    assert done.returncode == 0 and "330 ids" in done.stdout
    assert plain.read_bytes() == path.read_bytes()


def test_the_command_writes_a_whole_file_or_none(tmp_path, monkeypatch):
    command = importlib.import_module("nanoseek.lab.stages")
    (tmp_path / "good.jsonl").write_text('{"text": "a good text, a good text"}')
    path = tmp_path / "t.json"
    path.write_text("what stood there")

    def half(self, name):
        pathlib.Path(name).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(command.FastTokenizer, "save", half)
    with pytest.raises(OSError):
        command.learn_tokenizer(["train", str(tmp_path / "good.jsonl"), str(path), "--vocab_size",
                                 "258"])
    assert path.read_text() == "what stood there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.jsonl", "t.json"]


def test_command_line_answers_bad_input_in_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    (tmp_path / "held.jsonl").write_text('{"text": "a text", "split": "held_out"}\n')
    (tmp_path / "good.jsonl").write_text('{"text": "a good text, a good text"}\n')
    run("train", "good.jsonl", "ours.json", "--vocab_size", "258", cwd=tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("good.jsonl", "ours.json")]
    for args, word in ((("train", "absent.jsonl", "t.json"), "absent"),
                       (("train", "bad.jsonl", "t.json"), "line 2"),
                       (("train", "held.jsonl", "t.json"), "empty or held out"),
                       (("train", "good.jsonl", "good.jsonl"), "read and written"),
                       (("train", "t.json", "good.jsonl"), "t.json"),
                       (("train", "ours.json", "good.jsonl"), "ours.json, line 1"),
                       (("train", "good.jsonl", "t.json", "--vocab_size", "256"), "is 256"),
                       (("train", "good.jsonl", "t.json", "--vocab_size", "5000000000"), "give 257"),
                       (("compare", "good.jsonl", "ours.json"), "choose from"),
                       (("train",), "documents"), (("train", "a"), "tokenizer")):
        done = run(*args, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr
    assert not (tmp_path / "t.json").exists()
    assert before == [(tmp_path / name).read_bytes() for name in ("good.jsonl", "ours.json")]
