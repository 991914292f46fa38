r"""Open tokenizer.json files that others wrote; `Tokenizer.load` comes here with what is not ours.

A file of GPT-2's kind holds byte-level BPE as in the chapter, but numbers its tokens otherwise:
`Renumbered` translates the ids of our own tokenizer. Any other file (normalizers, other
pre-tokenizers, Unigram …) is left to the library `tokenizers`, an optional package, which `Library`
gives the methods of `Tokenizer`.
"""

import json
import math
import pathlib

import numpy as np
import regex

from nanoseek.tokenizer import BYTE_ALPHABET, END_OF_TEXT, GPT2_PATTERN, Tokenizer

# What the engine of `tokenizers` reads otherwise than `regex`: some escapes (\w takes ² in),
# [[:punct:]] and the like, (?m), a + behind {1,3}, set operations.
READ_OTHERWISE = (r"\\[AbBGhHkKNORwWXyYzZ1-9]|\[\[:\^?\w+:|\(\?[a-z]*m|\{[\d,]+\}\+"
                  r"|\[[^\]]*(?:--|\|\||~~)")
# What the parts of a file of GPT-2's kind may set; what sets anything else is left to the library.
GPT2_KIND = {"file": "version added_tokens pre_tokenizer post_processor decoder model",
             "BPE": "type unk_token vocab merges", "token": "id content special normalized",
             "Split": "type pattern behavior", "ByteLevel": "type trim_offsets use_regex"}


def open_file(path, own):
    """Open a tokenizer.json; `own` is the class for GPT-2's kind. ValueError: it does not open."""
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        _check(content)
        return _open_gpt2_kind(content, own) or Library(content)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a damaged tokenizer.json: {error!r}") from None
    except (ValueError, RecursionError, regex.error) as error:  # json and UTF-8 raise them, too
        raise ValueError(f"{path} is no tokenizer.json that opens here: {error}") from None


def _check(content):
    """Raise ValueError for damage that the library would let pass."""
    vocab = content["model"].get("vocab")
    names = [token["content"] for token in content.get("added_tokens") or []]
    if len({*names}) < len(names):
        raise ValueError("a special token is given twice")
    if isinstance(vocab, dict):
        if len({*vocab.values()}) < len(vocab):
            raise ValueError("its vocabulary gives two tokens the same id")
        missing = {*BYTE_ALPHABET} - vocab.keys()
        if missing and '"ByteLevel"' in json.dumps(content["pre_tokenizer"]):
            raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes; train it with "
                             "initial_alphabet=pre_tokenizers.ByteLevel.alphabet()")


def _open_gpt2_kind(content, own):
    """Return a Renumbered, or None where the file sets something that the chapter does not know."""
    model, added = content["model"], content.get("added_tokens") or []
    steps = content["pre_tokenizer"] or {"type": None}
    steps = steps.get("pretokenizers", [steps])
    parts = [("file", content), (model.get("type", "BPE"), model)]
    parts += [("token", token) for token in added] + [(step["type"], step) for step in steps]
    for kind, part in parts:
        if not {key for key, value in part.items() if value} <= {*GPT2_KIND.get(kind, "").split()}:
            return None
    *splits, last = steps
    if last["type"] != "ByteLevel" or any(split["type"] != "Split" for split in splits):
        return None
    patterns = [split["pattern"].get("Regex") for split in splits]
    patterns += [GPT2_PATTERN] * last.get("use_regex", True)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    names = BYTE_ALPHABET + [a + b for a, b in pairs]
    number = {name: n for n, name in enumerate(names)}  # our id
    merges = [(number.get(a, math.inf), number.get(b, math.inf)) for a, b in pairs]
    specials = {token["content"]: token["id"] for token in added}
    ids = [model["vocab"].get(name) for name in names] + [*specials.values()]
    plain = (
        all(token.get("special") for token in added)
        and all(split["behavior"] == "Isolated" for split in splits) and None not in patterns
        and not any(regex.search(READ_OTHERWISE, pattern) for pattern in patterns)
        and model["vocab"].keys() - specials.keys() == {*names}
        # The merges stand in an order that training could have found.
        and len(number) == len(names) and all(max(pair) < n for n, pair in enumerate(merges, 256))
        and all(type(i) is int and 0 <= i < 1 << 24 for i in ids))
    return Renumbered(own(merges, [*specials], patterns), ids, content) if plain else None


class Renumbered(Tokenizer):
    """One of our tokenizers under other ids."""

    def __init__(self, inner, ids, content):
        """ids: the new id of each old one; content: that of the file, for `save`."""
        self._inner, self._ids, self._content = inner, np.array(ids, np.int32), content
        self.tokens = {ids[i]: raw for i, raw in inner.tokens.items()}
        self.special_tokens = {name: ids[i] for name, i in inner.special_tokens.items()}
        self.vocab_size, self.eot_id = 1 + max(ids), self.special_tokens.get(END_OF_TEXT)

    def encode(self, text, allowed_special=()):
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts, allowed_special=()):
        return [self._ids[row] for row in self._inner.encode_batch(texts, allowed_special)]

    def content(self):
        return self._content


class Library(Tokenizer):
    """A tokenizer that the library `tokenizers` runs; no tokens of its own are added to a text."""

    def __init__(self, content):
        try:
            import tokenizers
        except ImportError:
            raise ValueError("it is not byte-level BPE of GPT-2's kind; the library tokenizers "
                             "opens it: pip install tokenizers") from None
        try:
            self._library = tokenizers.Tokenizer.from_str(
                json.dumps(content | {"truncation": None, "padding": None}))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(error) from None
        self._new_stream, self._content = tokenizers.decoders.DecodeStream, content
        added = self._library.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: i for i, token in added if token.special}
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.vocab_size = 1 + max(self._library.get_vocab().values())

    def encode(self, text, allowed_special=()):
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts, allowed_special=()):
        """Return the ids of each text; allowed_special: all of the special tokens, or none."""
        names = self.special_tokens if allowed_special == "all" else allowed_special
        if names and {*names} != {*self.special_tokens}:
            raise ValueError('of this tokenizer allow "all" special tokens, or none')
        self._library.encode_special_tokens = not names  # True: their names are ordinary text
        try:
            rows = self._library.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise ValueError(f"the tokenizer wants text that has a UTF-8: {error}") from None
        return [np.array(row.ids, np.int32) for row in rows]

    def decode_bytes(self, ids):
        ids = getattr(ids, "tolist", lambda: list(ids))()
        if not all(type(i) is int and 0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"ids are whole numbers from 0 to {self.vocab_size - 1}")
        return self._library.decode(ids, skip_special_tokens=False).encode()

    def decode_stream(self, ids):
        stream = self._new_stream(skip_special_tokens=False)
        yield from filter(None, (stream.step(self._library, i) for i in ids))

    def content(self):
        return self._content
