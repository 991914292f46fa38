r"""Cut text into tokens by byte-level BPE: train, encode, decode, tokenizer.json.

    tokenizer = Tokenizer.train(["the cat and the other cat", "猫和猫"], vocab_size=264)
    ids = tokenizer.encode("the cat")
    tokenizer.decode(ids)                        # "the cat"
    tokenizer.save("tokenizer.json")             # opens in `tokenizers` and transformers

A pattern cuts text into chunks, roughly words; nothing is merged across two. Training merges the
most frequent pair of neighbours into a new token, again and again; of equally frequent pairs the
one with the smaller left id, then the smaller right id. Encoding repeats the merges in the order in
which training found them. fast/bpe.py and fast/encode.py do the same faster.

Papers: Gage 1994 (byte-pair encoding); Sennrich et al. 2016, arXiv 1508.07909, §3.2 (for words);
Radford et al. 2019, §2.2 (bytes, split pattern); DeepSeek LLM, arXiv 2401.02954, §2.1.

Ids: 0–255 are the bytes, then come the merges in order, then the special tokens, to which no text
is encoded unasked: <|endoftext|> stands between documents."""

import codecs
import collections
import functools
import importlib.util
import itertools
import json
import pathlib
import warnings

import numpy as np
import regex

END_OF_TEXT = "<|endoftext|>"

# Scripts that put no spaces between words: Chinese characters and Japanese kana.
_CJK = ("\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
        "\U00020000-\U0003fffd")
# DeepSeek LLM's cut: words, punctuation and CJK apart, digits one by one. Here one pattern does it,
# a space or mark may join the word after it, and \s+(?!\S) leaves a run's last space to the word.
DEFAULT_PATTERN = (r"[ \p{P}\p{S}]?[^\s\p{N}\p{P}\p{S}CJK]+| ?[\p{P}\p{S}]+[\r\n]*|[CJK]+|\p{N}"
                   r"|\s+(?!\S)|\s").replace("CJK", _CJK)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What a pattern leaves out is a chunk, too; so is one character at which its match is empty.
WITH_GAPS = "(?:{0})|(?:(?!{0})(?s:.))+|(?s:.)"

# The characters that stand for the bytes in tokenizer.json: GPT-2's table. A space is Ġ.
_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_SPARE = itertools.count(256)
BYTE_ALPHABET = [chr(byte if byte in _PRINTABLE else next(_SPARE)) for byte in range(256)]


def several(texts):
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise ValueError(f"this wants several texts, not a {type(texts).__name__}: pass [text]")
    return texts


def merge_pair(ids, pair, new_id):
    """Replace a pair by one id, from left to right: [1, 2, 3, 1, 2], (1, 2), 9 → [9, 3, 9]."""
    merged, i = [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges(counts, n_merges, min_count=2, progress=None, max_token_length=None):
    """Learn up to `n_merges` merges from {chunk: times}: list of (left id, right id).

    A merge changes only the chunks that hold its pair. So all pairs are counted once; after each
    merge the counts are corrected by what these chunks held before and hold now."""
    chunks, times = [[] for _ in counts], list(counts.values())
    pair_counts, holders = collections.Counter(), collections.defaultdict(set)
    merges, lengths = [], [1] * 256  # lengths: bytes of each token

    def replace(number, ids):
        for pair in itertools.pairwise(chunks[number]):  # what this chunk held
            pair_counts[pair] -= times[number]
        for pair in itertools.pairwise(ids):  # what it holds now
            pair_counts[pair] += times[number]
            holders[pair].add(number)
        chunks[number] = ids

    for number, chunk in enumerate(counts):
        replace(number, list(chunk.encode()))
    while len(merges) < n_merges and (most := max(pair_counts.values(), default=0)) >= min_count:
        left, right = pair = min(pair for pair, count in pair_counts.items() if count == most)
        if max_token_length and lengths[left] + lengths[right] > max_token_length:
            pair_counts[pair] = float("-inf")  # it never comes up again
            continue
        for number in holders.pop(pair):
            replace(number, merge_pair(chunks[number], pair, 256 + len(merges)))
        merges.append(pair)
        lengths.append(lengths[left] + lengths[right])
        if progress and len(merges) % 1000 == 0:
            progress(f"{len(merges):,} of {n_merges:,} merges; the last occurred {most:,} times")
    return merges


class Tokenizer:
    """A byte-level BPE tokenizer; `train` or `load` makes one.

    merges: {(left id, right id): new id}, where a smaller new id is an earlier merge; tokens:
    {id: bytes}; special_tokens: {name: id}; eot_id: that of <|endoftext|>, or None."""

    learn_merges = staticmethod(learn_merges)

    def __init__(self, merges, special_tokens=(END_OF_TEXT,), pattern=DEFAULT_PATTERN):
        """Build from merges (pairs of ids), names of special tokens, and pattern or patterns."""
        self.merges = {pair: 256 + rank for rank, pair in enumerate(merges)}
        self.tokens = {byte: bytes([byte]) for byte in range(256)}
        for (left, right), new in self.merges.items():
            self.tokens[new] = self.tokens[left] + self.tokens[right]
        self.names = ["".join(BYTE_ALPHABET[b] for b in token) for token in self.tokens.values()]
        specials = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
        for name in specials:
            if not isinstance(name, str) or name in ["", *self.names] or specials.count(name) > 1:
                raise ValueError(f"special token {name!r}: a text, given once, no ordinary token")
        self.special_tokens = {name: len(self.names) + i for i, name in enumerate(specials)}
        self.tokens |= {i: name.encode() for name, i in self.special_tokens.items()}
        self.vocab_size, self.eot_id = len(self.tokens), self.special_tokens.get(END_OF_TEXT)
        self.patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        self._compiled = [regex.compile(WITH_GAPS.format(pattern), regex.V1 | regex.MULTILINE)
                          for pattern in self.patterns]  # MULTILINE: as `tokenizers` reads ^ and $

    @classmethod
    def train(cls, texts, vocab_size, special_tokens=(END_OF_TEXT,), pattern=DEFAULT_PATTERN,
              min_count=2, progress=None, max_token_length=None):
        """Learn a tokenizer of `vocab_size` ids from an iterable of str, read once.

        pattern: one, or several that cut in turn. A pair that is seen fewer than `min_count` times
        is not merged. max_token_length: in bytes; without it a small Chinese vocabulary fills up
        with phrases. progress: called with a line of text."""
        bare = cls([], special_tokens, pattern)
        n_merges = vocab_size - bare.vocab_size
        if not 0 <= n_merges < 1 << 24:
            raise ValueError(f"vocab_size is {vocab_size}: give {bare.vocab_size} to {1 << 24}")
        if max_token_length is not None and max_token_length < 1:
            raise ValueError(f"max_token_length is {max_token_length}: it must be at least 1")
        counts = collections.Counter(chunk for text in several(texts) for chunk in bare.split(text))
        if not counts:
            raise ValueError("there is no text to train on: all of it is empty or held out")
        merges = cls.learn_merges(counts, n_merges, max(1, min_count), progress, max_token_length)
        if len(merges) < n_merges:
            warnings.warn(f"the text has only {len(merges)} pairs worth merging: the vocabulary "
                          f"has {bare.vocab_size + len(merges)} ids, not {vocab_size}")
        return cls(merges, bare.special_tokens, bare.patterns)

    def split(self, text):
        """Cut a text into chunks (list of str), by one pattern after another."""
        if not isinstance(text, str):
            raise ValueError(f"the tokenizer wants text (str), not {type(text).__name__}")
        chunks = [text] if text else []
        for pattern in self._compiled:
            chunks = [match[0] for chunk in chunks for match in pattern.finditer(chunk) if match[0]]
        return chunks

    @functools.lru_cache(1 << 16)  # the same chunks come again and again
    def merge(self, chunk):
        """Return the ids of a chunk (str): the earliest merge comes first, wherever it fits."""
        ids = list(chunk.encode())
        while len(ids) > 1:
            pair = min(itertools.pairwise(ids), key=lambda p: self.merges.get(p, self.vocab_size))
            if pair not in self.merges:
                break
            ids = merge_pair(ids, pair, self.merges[pair])
        return tuple(ids)  # the cache hands out the same object every time

    def encode(self, text, allowed_special=()):
        """Return the ids of a text: list of int.

        The name of a special token stays text, unless `allowed_special` ("all", or some names)
        allows it: what a user types must not end a document."""
        names = self.special_tokens if allowed_special == "all" else allowed_special
        names = [names] if isinstance(names, str) else sorted(names, key=len, reverse=True)
        if unknown := {*names} - self.special_tokens.keys():
            raise ValueError(f"no special token of this tokenizer: {', '.join(sorted(unknown))}")
        finder, ids = f"({'|'.join(map(regex.escape, names))})", []  # the longest name comes first
        for part in regex.split(finder, text) if names else [text]:
            ids += ([self.special_tokens[part]] if part in names else
                    itertools.chain.from_iterable(map(self.merge, self.split(part))))
        return ids

    def encode_batch(self, texts):
        """Return the ids of each text: list of int32 arrays."""
        return [np.array(self.encode(text), np.int32) for text in several(texts)]

    def decode_bytes(self, ids):
        """Return the bytes of any ids (list, array or tensor); ValueError for an unknown id."""
        try:
            return b"".join(map(self.tokens.__getitem__, getattr(ids, "tolist", lambda: ids)()))
        except (KeyError, TypeError):
            raise ValueError(f"ids are whole numbers from 0 to {self.vocab_size - 1}") from None

    def decode(self, ids):
        """Return the text of ids; invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_stream(self, ids):
        """Return an iterator over the text of ids as they come, never half a character."""
        return codecs.iterdecode((self.decode_bytes([i]) for i in ids), "utf-8", "replace")

    def content(self):
        """Return the content of tokenizer.json, as the library `tokenizers` reads it: dict."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [{"id": i, "content": name, **flags, "special": True}
                 for name, i in self.special_tokens.items()]
        splits = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                   "invert": False} for pattern in self.patterns]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        model = {"type": "BPE", "dropout": None, "unk_token": None,
                 "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                 "byte_fallback": False, "ignore_merges": False,
                 "vocab": {name: i for i, name in enumerate(self.names)},
                 "merges": [f"{self.names[a]} {self.names[b]}" for a, b in self.merges]}
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
                "post_processor": None, "decoder": byte_level, "model": model}

    def save(self, path):
        """Write tokenizer.json."""
        text = json.dumps(self.content(), ensure_ascii=False, indent=1)
        pathlib.Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Open a tokenizer.json; one that others wrote is opened by lab/foreign_tokenizer.py."""
        try:
            content = json.loads(pathlib.Path(path).read_bytes())
            model, steps = content["model"], content["pre_tokenizer"]["pretokenizers"]
            own = cls([tuple(map(model["vocab"].get, line.split())) for line in model["merges"]],
                      [token["content"] for token in content["added_tokens"]],
                      [step["pattern"]["Regex"] for step in steps[:-1]])
            if own.content() == content:
                return own
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError, regex.error):
            pass  # not written by `save`
        if importlib.util.find_spec("nanoseek") is None:
            raise ValueError(f"{path} was not written by `save`: this file alone cannot open it")
        return importlib.import_module("nanoseek.lab.foreign_tokenizer").Library(path)


def main():
    from nanoseek.cli import hand_over, run
    run(lambda: hand_over("nanoseek.lab.stages", None, "learn_tokenizer"))


if __name__ == "__main__":
    main()
