"""Others' tokenizer.json files, opened through `tokenizers` and held beside it."""

import importlib.util
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

import nanoseek.tokenizer
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.lab.foreign_tokenizer import Library
from nanoseek.tokenizer import Tokenizer

path = pathlib.Path(__file__).parents[1] / "bench" / "diff_tokenizer.py"
spec = importlib.util.spec_from_file_location("diff_tokenizer", path)
diff = importlib.util.module_from_spec(spec)
spec.loader.exec_module(diff)

TEXTS = ["The cat sat on the mat, and the other cat sat on the other mat.\n" * 3,
         "那只猫坐在垫子上，另一只猫坐在另一张垫子上。" * 3]


@pytest.fixture(scope="module")
def small():
    """A tokenizer that knows a few dozen merges."""
    return Tokenizer.train(TEXTS, 305)


@pytest.fixture(scope="module")
def texts():
    return diff.training_texts()[:400]


@pytest.mark.parametrize("kind", [Tokenizer, FastTokenizer])
def test_every_style_encodes_as_its_library_does(texts, tmp_path, kind):
    rng = random.Random(11)
    characters, words = diff.common_characters(0x20000), " ".join(texts).split()
    strings = [diff.make_string(rng, characters, words) for _ in range(150)]
    for name, style in diff.styles().items():
        path = diff.build(style, texts, tmp_path, vocab_size=600)
        assert isinstance(kind.load(path), Library), name
        assert diff.compare_strings(kind, path, strings) == [], name


def gpt2_kind(tokenizer):
    """Return the content of a file of GPT-2's kind."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.loads(json.dumps(tokenizer.content() | {"pre_tokenizer": step}))


def change(spec, place, value):
    *places, last = place.split(".")
    for name in places:
        spec = spec[int(name) if name.isdigit() else name]
    spec[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize("place, value", [
    ("model.dropout", 0.1),
    ("model.byte_fallback", True),
    ("model.ignore_merges", True),
    ("model.end_of_word_suffix", "</w>"),
    ("truncation", {"direction": "Right", "max_length": 5, "strategy": "LongestFirst",
                    "stride": 0}),
    ("padding", {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
                 "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}),
    ("normalizer", {"type": "Lowercase"}),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}),
    ("pre_tokenizer", None),
    ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                       "split": True}),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Removed", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}]}),
    ("pre_tokenizer.use_regex", False),
    ("pre_tokenizer.add_prefix_space", True),
    ("added_tokens.0.lstrip", True),
    ("added_tokens.0.single_word", True),
    ("added_tokens.0.special", False),
])
def test_every_setting_is_the_librarys(small, tmp_path, monkeypatch, place, value):
    content, path = gpt2_kind(small), tmp_path / "t.json"
    change(content, place, value)
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    peer.no_truncation()
    peer.no_padding()
    assert isinstance(tokenizer, Library)
    if place != "model.dropout":
        for text in TEXTS + ["The CAT café <|endoftext|> sat", ""]:
            ids = peer.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, allowed_special="all") == ids
            assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=False)
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    with pytest.raises(ValueError, match="t.json .*pip install tokenizers$"):
        Tokenizer.load(path)


def test_a_unigram_tokenizer_of_the_library(tmp_path):
    peer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    peer.pre_tokenizer, peer.decoder = (tokenizers.pre_tokenizers.Metaspace(),
                                        tokenizers.decoders.Metaspace())
    peer.train_from_iterator(TEXTS, tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<|endoftext|>", "<unk>"], unk_token="<unk>",
        show_progress=False))
    peer.save(str(tmp_path / "t.json"))
    tokenizer, text = Tokenizer.load(tmp_path / "t.json"), "the cat sat on the other mat"
    ids = tokenizer.encode(text)
    assert ids == peer.encode(text).ids and tokenizer.vocab_size == peer.get_vocab_size()
    assert [row.dtype for row in tokenizer.encode_batch([text, ""])] == [np.int32] * 2
    assert tokenizer.decode(np.array(ids)) == text == "".join(tokenizer.decode_stream(iter(ids)))
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.eot_id == 0 and tokenizer.special_tokens == {"<|endoftext|>": 0, "<unk>": 1}
    assert tokenizer.encode("<|endoftext|>", "all") == [0] != tokenizer.encode("<|endoftext|>")
    for bad, words in (([-1], "from 0 to"), ([999], "from 0 to"), (["a"], "from 0 to")):
        with pytest.raises(ValueError, match=words):
            tokenizer.decode(bad)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tokenizer.encode("a file name \udcff")
    with pytest.raises(ValueError, match="or none"):
        tokenizer.encode(text, allowed_special=["<unk>"])
    tokenizer.save(tmp_path / "again.json")
    assert Tokenizer.load(tmp_path / "again.json").encode(text) == ids


def test_a_file_is_saved_as_it_was(tmp_path):
    peer = tokenizers.ByteLevelBPETokenizer()
    peer.train_from_iterator(TEXTS, 300, special_tokens=["<s>", "<|endoftext|>"],
                             show_progress=False)
    peer.save(str(tmp_path / "t.json"))
    for kind in (Tokenizer, FastTokenizer):
        tokenizer = kind.load(tmp_path / "t.json")
        assert tokenizer.eot_id == 1 and tokenizer.vocab_size == peer.get_vocab_size()
        for text in TEXTS + [""]:
            ids = tokenizer.encode(text)
            assert ids == peer.encode(text).ids and tokenizer.decode(ids) == text
            assert "".join(tokenizer.decode_stream(ids)) == text
        assert tokenizer.encode("<s>", "all") == [0]
        tokenizer.save(tmp_path / "again.json")
        assert (json.loads((tmp_path / "again.json").read_text("utf-8"))
                == json.loads((tmp_path / "t.json").read_text("utf-8")))


def test_a_copied_out_chapter_says_that_it_cannot_open_the_file(tmp_path):
    tokenizers.ByteLevelBPETokenizer().save(str(tmp_path / "t.json"))
    shutil.copy(nanoseek.tokenizer.__file__, tmp_path / "tokenizer.py")
    done = subprocess.run(
        [sys.executable, "-c", "from tokenizer import Tokenizer; Tokenizer.load('t.json')"],
        cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ("ValueError: t.json was not written by `save`: this "
                                            "file alone cannot open it")


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
                    {"vocab": {**model["vocab"], "zz": "x"}}, {"vocab": []},
                    {"type": "Unigram"}, {"type": "WordPiece"}):
        yield json.dumps({**spec, "model": {**model, **changed}}).encode()
    yield json.dumps({**spec, "added_tokens": [{"content": "x"}]}).encode()
    yield json.dumps({**spec, "added_tokens": [{"content": "x", "id": 10 ** 15}]}).encode()
    size = len(model["vocab"])
    for ids in ((size, size), (size, 100), (size + 1, size), (size, 10 ** 6)):
        yield json.dumps({**spec, "added_tokens": [{
            "content": name, "id": i, "special": True, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False} for name, i in zip(("<x>", "<y>"), ids)]}).encode()
    step = {"type": "Split", "pattern": {"Regex": "a("}, "behavior": "Isolated", "invert": False}
    yield json.dumps(spec | {"pre_tokenizer": step}).encode()
    yield b"[" * 200_000
    for odd in (10 ** 12, -1, True, spec["model"]["vocab"]["b"]):
        vocab = {**spec["model"]["vocab"], "a": odd}
        yield json.dumps({**spec, "model": {**model, "vocab": vocab}}).encode()


def test_damaged_files_are_refused(small, tmp_path):
    path = tmp_path / "tokenizer.json"
    for number, damaged in enumerate([*damage(small.content()), *damage(gpt2_kind(small))]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="tokenizer.json is "):
            Tokenizer.load(path)
            pytest.fail(f"damage {number} was accepted")
    with pytest.raises(OSError):
        Tokenizer.load(tmp_path / "absent.json")
