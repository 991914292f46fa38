"""Open tokenizer.json files that others wrote; `Tokenizer.load` comes here with what is not ours.

A file of GPT-2's kind holds byte-level BPE as in the chapter, with GPT-2's pattern and other ids:
`Renumbered` is one of our tokenizers under these. Any other file (normalizers, other patterns,
Unigram …) is run by the library `tokenizers`, an optional package.
"""

import json
import pathlib

from nanoseek.tokenizer import BYTE_ALPHABET, END_OF_TEXT, GPT2_PATTERN, Tokenizer


def open_file(path, own):
    """Open a tokenizer.json; `own` is the class for GPT-2's kind. ValueError: it does not open."""
    data = pathlib.Path(path).read_bytes()
    try:
        content = json.loads(data)
        _check(content["model"].get("vocab"), content.get("added_tokens") or [], content)
        return _open_gpt2_kind(content, own) or Library(content)
    except ImportError:
        raise ValueError(f"{path} is not of GPT-2's kind: pip install tokenizers") from None
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path} is no tokenizer.json that opens here: {error}") from None


def _check(vocab, added, content):
    """Raise ValueError for damage that the library would let pass."""
    if len({token["content"] for token in added}) < len(added):
        raise ValueError("a special token is given twice")
    if isinstance(vocab, dict):
        if len({*vocab.values()}) < len(vocab):
            raise ValueError("its vocabulary gives two tokens the same id")
        byte_level = '"ByteLevel"' in json.dumps(content["pre_tokenizer"])
        if byte_level and not vocab.keys() >= {*BYTE_ALPHABET}:
            raise ValueError("its vocabulary lacks some bytes: train it with an initial_alphabet")


def _open_gpt2_kind(content, own):
    """Return a Renumbered, or None where the file sets something that GPT-2's does not."""
    model, added = content["model"], content.get("added_tokens") or []
    parts = [  # of the file: what each may set as it likes, and what else it sets
        (content, "version added_tokens pre_tokenizer post_processor decoder model", {}),
        ({"type": "BPE"} | model, "unk_token vocab merges", {"type": "BPE"}),
        ({"use_regex": True} | (content["pre_tokenizer"] or {}), "trim_offsets",
         {"use_regex": True, "type": "ByteLevel"}),
        *((token, "id content normalized", {"special": True}) for token in added)]
    for part, free, rest in parts:
        if {key: value for key, value in part.items() if value and key not in free.split()} != rest:
            return None
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    names, specials = BYTE_ALPHABET + [a + b for a, b in pairs], [t["content"] for t in added]
    number = {name: n for n, name in enumerate(names)}  # our id
    merges = [(number.get(a, n), number.get(b, n)) for n, (a, b) in enumerate(pairs, 256)]
    ids = [model["vocab"].get(name) for name in names] + [token["id"] for token in added]
    if (sorted(model["vocab"].keys() - {*specials}) == sorted(names)
            and all(type(i) is int and 0 <= i < 1 << 24 for i in ids)
            and all(max(pair) < n for n, pair in enumerate(merges, 256))):  # parts come first
        return Renumbered(own(merges, specials, GPT2_PATTERN), ids, content)


class Foreign(Tokenizer):
    """A tokenizer of others, whose file `save` writes as it was."""

    def __init__(self, content, special_tokens, vocab_size):
        self._content, self.special_tokens, self.vocab_size = content, special_tokens, vocab_size
        self.eot_id = special_tokens.get(END_OF_TEXT)

    def content(self):
        return self._content


class Renumbered(Foreign):
    """One of our tokenizers under other ids: `ids` holds the new id of each old one."""

    def __init__(self, inner, ids, content):
        specials = {name: ids[i] for name, i in inner.special_tokens.items()}
        super().__init__(content, specials, 1 + max(ids))
        self._inner, self._ids = inner, ids
        self.tokens = {ids[i]: raw for i, raw in inner.tokens.items()}

    def encode(self, text, allowed_special=()):
        return [self._ids[i] for i in self._inner.encode(text, allowed_special)]


class Library(Foreign):
    """A tokenizer that the library `tokenizers` runs; no tokens of its own are added to a text."""

    def __init__(self, content):
        import tokenizers
        self._new_stream = tokenizers.decoders.DecodeStream
        self._library = tokenizers.Tokenizer.from_str(
            json.dumps(content | {"truncation": None, "padding": None}))
        added = self._library.get_added_tokens_decoder().items()
        super().__init__(content, {token.content: i for i, token in added if token.special},
                         1 + max(self._library.get_vocab().values()))

    def encode(self, text, allowed_special=()):
        if allowed_special and allowed_special != "all":
            raise ValueError('of this tokenizer allow "all" special tokens, or none')
        self._library.encode_special_tokens = not allowed_special  # True: they are ordinary text
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(f"the tokenizer wants text that has a UTF-8: {error}") from None

    def decode_bytes(self, ids):
        ids = getattr(ids, "tolist", lambda: list(ids))()
        if not all(type(i) is int and 0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"ids are whole numbers from 0 to {self.vocab_size - 1}")
        return self._library.decode(ids, skip_special_tokens=False).encode()

    def decode_stream(self, ids):
        stream = self._new_stream(skip_special_tokens=False)
        yield from filter(None, (stream.step(self._library, i) for i in ids))
