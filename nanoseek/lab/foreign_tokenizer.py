"""Open tokenizer.json files that others wrote; `Tokenizer.load` comes here with what is not ours.

A file of GPT-2's kind holds byte-level BPE as in the chapter, but numbers its tokens otherwise:
`Renumbered` translates the ids of our own tokenizer. Any other file (normalizers, other
pre-tokenizers, Unigram …) is left to the library `tokenizers`, an optional package, which `Library`
gives the methods of `Tokenizer`.
"""

import json
import pathlib

import numpy as np
import regex

from nanoseek.tokenizer import BYTE_ALPHABET, END_OF_TEXT, GPT2_PATTERN, Tokenizer

# What the engine of `tokenizers` reads otherwise than `regex`: some escapes (\w takes ² in),
# [[:punct:]] and the like, (?m), a + behind {1,3}, set operations.
READ_OTHERWISE = (r"\\[AbBGhHkKNORwWXyYzZ1-9]|\[\[:\^?\w+:|\(\?[a-z]*m|\{[\d,]+\}\+"
                  r"|\[[^\]]*(?:--|\|\||~~)")


def open_file(path, own):
    """Open a tokenizer.json; `own` is the class for GPT-2's kind. ValueError: it does not open."""
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        _check(content)
        own_kind = _read_gpt2_kind(content)
        if own_kind is None:
            return Library(content)
        *parts, ids = own_kind
        return Renumbered(own(*parts), ids, content)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a damaged tokenizer.json: {error!r}") from None
    except (ValueError, RecursionError, regex.error) as error:  # json and UTF-8 raise them, too
        raise ValueError(f"{path} is no tokenizer.json that opens here: {error}") from None


def _check(content):
    """Raise ValueError for damage that the library would let pass."""
    vocab, added = content["model"].get("vocab"), content.get("added_tokens") or []
    names = [token["content"] for token in added]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the special token {name!r} is given twice")
    if isinstance(vocab, dict):
        if len(set(vocab.values())) < len(vocab):
            raise ValueError("its vocabulary gives two tokens the same id")
        missing = {*BYTE_ALPHABET} - vocab.keys()
        if missing and '"ByteLevel"' in json.dumps(content["pre_tokenizer"]):
            raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes; train it with "
                             "initial_alphabet=pre_tokenizers.ByteLevel.alphabet()")


def _set_in(part):
    return {name for name, value in part.items() if value}


def _read_gpt2_kind(content):
    """Return merges, special tokens, patterns, and the file's id of each of our ids; or None.

    None: the file sets something that the chapter does not know.
    """
    model, added = content["model"], content.get("added_tokens") or []
    steps = content["pre_tokenizer"] or {"type": None}
    *splits, last = steps.get("pretokenizers", [steps])
    known = (
        _set_in(content) <= {"version", "added_tokens", "pre_tokenizer", "post_processor",
                             "decoder", "model"}
        and _set_in(model) <= {"type", "unk_token", "vocab", "merges"}
        and model.get("type", "BPE") == "BPE" and last["type"] == "ByteLevel"
        and _set_in(last) <= {"type", "trim_offsets", "use_regex"}
        and all(token.get("special") and _set_in(token) <= {"id", "content", "special",
                                                            "normalized"} for token in added)
        and all(_set_in(split) == {"type", "pattern", "behavior"} and split["type"] == "Split"
                and split["behavior"] == "Isolated" and "Regex" in split["pattern"]
                for split in splits))
    if not known:
        return None
    patterns = [split["pattern"]["Regex"] for split in splits]
    patterns += [GPT2_PATTERN] * last.get("use_regex", True)
    specials = {token["content"]: token["id"] for token in added}
    merges, numbers = [], {character: byte for byte, character in enumerate(BYTE_ALPHABET)}
    for merge in model["merges"]:
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        if a + b in numbers or not {a, b} <= numbers.keys():
            return None  # these merges stand in no order that training could have found
        merges.append((numbers[a], numbers[b]))
        numbers[a + b] = len(numbers)
    same_tokens = model["vocab"].keys() - specials.keys() == numbers.keys()
    if not same_tokens or any(regex.search(READ_OTHERWISE, pattern) for pattern in patterns):
        return None
    ids = [model["vocab"][name] for name in numbers] + [*specials.values()]
    if not all(type(i) is int and 0 <= i < 1 << 24 for i in ids):
        raise ValueError("an id is no whole number from 0 to 16,777,215")
    return merges, [*specials], patterns, ids


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
            self._library = tokenizers.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(error) from None
        self._library.no_truncation()
        self._library.no_padding()
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
