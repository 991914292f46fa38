"""Look for differences between nanoseek's tokenizer and its peers on random strings.

    python tests/bench/diff_tokenizer.py                       # 100,000 strings and more
    python tests/bench/diff_tokenizer.py --strings 2000 --seed 7

Every string goes through tokenizers in the styles of `STYLES`, built here with the `tokenizers`
library and saved as tokenizer.json: `FastTokenizer.load` opens the file and must give the ids that
`tokenizers` gives, one by one as well as in a batch. A tokenizer of our own must give those of
tiktoken on the same merges, too; random ids must decode to the same text; and training must find
the merges of a trainer that counts all pairs anew each time.

The strings: words, code, Chinese, emoji, any code points, white space, long runs, the names of
special tokens, and mixtures. Left out are the characters that the three libraries, which carry
different versions of Unicode, put in different classes or normalise differently.
"""

import argparse
import collections
import importlib
import json
import math
import os
import random
import sys
import tempfile
import time
import unicodedata

import regex
import tiktoken
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

# DeepSeek LLM's order and accidents; its explicit ranges of letters are \p{L} here.
DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
CLASSES = (r"\p{L}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}", r"\s")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<｜begin▁of▁sentence｜>"]


# ---- characters and strings --------------------------------------------------------------

def _in_tokenizers(name, text):
    split = pre_tokenizers.Split(Regex(name), "removed", invert=True)
    return {piece for piece, _ in split.pre_tokenize_str(text)}


def _in_tiktoken(name, text):
    ranks = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding("probe", pat_str=name, mergeable_ranks=ranks, special_tokens={})
    return set(encoding.decode(encoding.encode_ordinary(text)))


def common_characters(limit=0x110000):
    """Return the characters below `limit` that all libraries class and normalise alike."""
    text = "".join(chr(i) for i in range(limit) if not 0xD800 <= i < 0xE000)
    differ = set()
    for name in CLASSES:
        here = set(regex.findall(name, text))
        differ |= here ^ _in_tokenizers(name, text) | here ^ _in_tiktoken(name, text)
    nfc = normalizers.NFC().normalize_str
    return [c for c in text if c not in differ and nfc(c) == unicodedata.normalize("NFC", c)
            and unicodedata.category(c) != "Cn"]


def _emoji(rng):
    return rng.choice(["😀", "👩‍👩‍👧", "🇨🇳", "👍🏽", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "™", "€", "“", "”", "…", "—"])


def make_string(rng, characters, words):
    """Return one random string of one to a few pieces of random kinds."""
    kinds = [
        lambda: " ".join(rng.choices(words, k=rng.randrange(1, 12))),
        lambda: "".join(rng.choices(words, k=rng.randrange(1, 6))),
        lambda: "".join(chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(rng.randrange(1, 20))),
        lambda: "".join(rng.choices(characters, k=rng.randrange(1, 12))),
        lambda: "".join(chr(rng.randrange(128)) for _ in range(rng.randrange(1, 20))),
        lambda: "".join(rng.choices(" \t\r\n\u00a0\u3000\u2028\x0b\x85", k=rng.randrange(1, 9))),
        lambda: rng.choice(["a", "ab", " ", "\n", "=", "哈", "7", "é", "ก", "한", " \n", "-\t"])
        * rng.randrange(1, 300),
        lambda: "".join(_emoji(rng) for _ in range(rng.randrange(1, 5))),
        lambda: rng.choice(["don't", "I'LL", "we've", "'\u017f", "'S ", "x'd", "’s", "1,234.5"]),
        lambda: rng.choice(SPECIALS + ["<|endoftext", "<think>", "</think>", "<｜end"]),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 15))),
    ]
    glue = rng.choice(["", "", " ", "\n", "  "])
    return glue.join(rng.choice(kinds)() for _ in range(rng.choice([1, 1, 2, 3, 5])))


def training_texts():
    """Return some English, Chinese, code and emoji to train the peers' tokenizers on."""
    from nanoseek.corpus.stories import stories
    texts = [story.text for language in ("en", "zh") for story in stories(language, 300, 3)]
    for module in (argparse, json, unicodedata, collections, random, tempfile):
        if getattr(module, "__file__", "").endswith(".py"):
            with open(module.__file__, encoding="utf-8") as file:
                texts += file.read().split("\n\n")
    rng = random.Random(5)
    return texts + [_emoji(rng) + " " + _emoji(rng) for _ in range(200)]


# ---- the peers' tokenizers ---------------------------------------------------------------

def _byte_level(add_prefix_space=False, use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def _splits(*patterns):
    return [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]


def _style(parts, added=(), normalizer=None, post=None, change=None):
    return {"parts": parts, "added": added, "normalizer": normalizer, "post": post,
            "change": change}


def _shuffle_merges(spec):
    """Put the merges in an order in which training could never find them, some of them twice."""
    merges = spec["model"]["merges"]
    merges += merges[::9]
    random.Random(1).shuffle(merges)


def _all_merges(spec):
    """Give Llama 3's merges: every way to put a token together from two, and whole tokens first.

    Every seventh token has no merge at all, so that it is found only where it is a whole chunk.
    """
    vocab = spec["model"]["vocab"]
    spec["model"]["merges"] = [
        [name[:i], name[i:]] for name in sorted(vocab, key=vocab.get) for i in range(1, len(name))
        if name[:i] in vocab and name[i:] in vocab and vocab[name] % 7]
    spec["model"]["ignore_merges"] = True


def _special(*names, **flags):
    return [AddedToken(name, special=True, **{"normalized": False} | flags) for name in names]


def styles():
    """Return {name: how to build a tokenizer in that style}."""
    think = [AddedToken("<think>", special=False, normalized=False),
             AddedToken("</think>", special=False, normalized=True)]
    begin = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return {
        "gpt2": _style([_byte_level(use_regex=True)], _special(SPECIALS[0], normalized=True)),
        "gpt2 with a space": _style([_byte_level(True, True)], _special(SPECIALS[0])),
        "llama3": _style([*_splits(LLAMA3), _byte_level()], _special(*SPECIALS[:2]), post=begin,
                         change=_all_merges),
        "deepseek": _style([*_splits(*DEEPSEEK), pre_tokenizers.Digits(True), _byte_level()],
                           _special(SPECIALS[2], normalized=True) + think,
                           normalizers.Sequence([])),
        "qwen": _style([*_splits(QWEN), _byte_level()], _special(*SPECIALS[:2]) + think,
                       normalizers.NFC()),
        "starcoder": _style([pre_tokenizers.Digits(True), _byte_level(use_regex=True)]),
        "three digits": _style([pre_tokenizers.Digits(False), *_splits(r"\p{N}{3}", QWEN),
                                _byte_level()]),
        "gaps": _style([*_splits(r"[a-z]+(?=\d)|(\d)x|一+$"), _byte_level()]),
        "a string": _style([pre_tokenizers.Split("th", "isolated"), _byte_level(use_regex=True)]),
        "one chunk": _style([_byte_level()]),
        "empty matches": _style([*_splits(r"x*|[ \n]*"), _byte_level()]),
        "shuffled": _style([_byte_level(use_regex=True)], change=_shuffle_merges),
    }


def build(style, texts, folder, vocab_size=1500):
    """Train a tokenizer in one style with the `tokenizers` library; return the path of its file."""
    peer = tokenizers.Tokenizer(models.BPE())
    first, *more = style["parts"]
    peer.pre_tokenizer = pre_tokenizers.Sequence([first, *more]) if more else first
    peer.decoder = decoders.ByteLevel()
    if style["normalizer"]:
        peer.normalizer = style["normalizer"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    peer.train_from_iterator(texts, trainer)
    if style["added"]:
        peer.add_tokens(list(style["added"]))
    if style["post"]:
        peer.post_processor = style["post"]
    spec = json.loads(peer.to_str())
    if style["change"]:
        style["change"](spec)
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    return path


def tiktoken_of(tokenizer, pattern):
    """Return the tiktoken Encoding with the ids of one of ours that has a single pattern."""
    ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)
             if i not in tokenizer.special_tokens.values()}
    return tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# ---- training the naive way --------------------------------------------------------------

def naive_merges(counts, n_merges, min_count=2, max_token_length=None):
    """Learn merges from {chunk: times} by counting every pair anew for each merge."""
    words = [(list(chunk.encode()), times) for chunk, times in counts.items()]
    merges, size = [], [1] * 256
    while len(merges) < n_merges:
        pairs = collections.Counter()
        for word, times in words:
            for a, b in zip(word, word[1:]):
                if size[a] + size[b] <= (max_token_length or math.inf):
                    pairs[a, b] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < min_count:
            break
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [256 + len(merges)]
                i += 1
        merges.append(best)
        size.append(size[best[0]] + size[best[1]])
    return merges


def random_corpus(rng, characters, words):
    """Return {chunk: times} of one random kind, long chunks and runs among them."""
    alphabet = rng.choice(["ab", "aab ", "abcdefgh", "的一是不了人", characters, words])
    return {"".join(rng.choices(alphabet, k=rng.randrange(1, 40))): rng.randrange(1, 9)
            for _ in range(rng.randrange(1, 60))}


# ---- the run -----------------------------------------------------------------------------

def compare_strings(kind, path, strings, single_pattern=None):
    """Return what differs between a kind of ours, such as Tokenizer, and the peers: list of (what,
    string)."""
    tokenizer, peer = kind.load(path), tokenizers.Tokenizer.from_file(path)
    theirs = [row.ids for row in peer.encode_batch(strings, add_special_tokens=False)]
    ours = [tokenizer.encode(s, allowed_special="all") for s in strings]
    wrong = [("tokenizers", s) for s, mine, other in zip(strings, ours, theirs) if mine != other]
    wrong += [("in a batch", s) for s, row in zip(strings, tokenizer.encode_batch(strings))
              if tokenizer.encode(s) != row.tolist()]
    wrong += [("decoding", s) for s, ids in zip(strings, ours)
              if tokenizer.decode(ids) != peer.decode(ids, skip_special_tokens=False)]
    if single_pattern:
        encoding = tiktoken_of(tokenizer, single_pattern)
        wrong += [("tiktoken", s) for s, row in zip(strings, tokenizer.encode_batch(strings))
                  if encoding.encode_ordinary(s) != row.tolist()]
        wrong += [("round trip", s) for s, row in zip(strings, tokenizer.encode_batch(strings))
                  if tokenizer.decode(row) != s]
    return wrong


def compare_training(learn_merges, rng, characters, words):
    counts = random_corpus(rng, characters, words)
    n_merges = rng.choice([3, 30, 300])
    settings = {"min_count": rng.choice([1, 2, 5]), "max_token_length": rng.choice([None, 1, 4, 9])}
    found = learn_merges(counts, n_merges, **settings)
    return [] if found == naive_merges(counts, n_merges, **settings) else [("training", counts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--corpora", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    kind = importlib.import_module("nanoseek.fast.bpe").FastTokenizer
    patterns = importlib.import_module("nanoseek.tokenizer")
    rng = random.Random(args.seed)
    characters, texts = common_characters(), training_texts()
    words = sorted(set(" ".join(texts).split()))
    strings = [make_string(rng, characters, words) for _ in range(args.strings)]
    print(f"{len(characters):,} characters, {len(strings):,} strings, "
          f"{sum(map(len, strings)):,} characters in all")
    wrong = []
    for name, style in styles().items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = compare_strings(kind, build(style, texts, folder), strings)
        print(f"{name}: {len(found)} differences, {time.perf_counter() - began:.0f} s", flush=True)
        wrong += found
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.json")
        kind.train(texts, 1500).save(path)
        found = compare_strings(kind, path, strings, patterns.DEFAULT_PATTERN)
    print(f"our own: {len(found)} differences")
    trained = [compare_training(kind.learn_merges, rng, characters, words) for _ in range(args.corpora)]
    print(f"training on {args.corpora} corpora: {sum(map(len, trained))} differences")
    wrong += found + sum(trained, [])
    for what, string in wrong[:20]:
        print(what, repr(string)[:300])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
