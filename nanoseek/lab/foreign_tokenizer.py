"""Open tokenizer.json files that others wrote; `Tokenizer.load` comes here with what is not ours.

A file of GPT-2's kind, byte-level BPE with GPT-2's pattern, is one of our tokenizers under other
ids. Any other (normalizers, other patterns, Unigram …) is run by the optional package `tokenizers`.
"""

import json
import pathlib

from nanoseek.tokenizer import BYTE_ALPHABET, END_OF_TEXT, GPT2_PATTERN, Tokenizer

GPT2_SETS = {*("version added_tokens pre_tokenizer post_processor decoder model type unk_token "
               "vocab merges use_regex trim_offsets id content special normalized").split()}


def open_file(path, own):
    """Open a tokenizer.json; `own` is the class for GPT-2's kind. ValueError: it does not open."""
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        vocab, steps = content["model"].get("vocab"), json.dumps(content["pre_tokenizer"])
        if isinstance(vocab, dict) and '"ByteLevel"' in steps:  # damage that the library lets pass
            if not {*BYTE_ALPHABET} <= vocab.keys() or len({*vocab.values()}) < len(vocab):
                raise ValueError("its vocabulary lacks bytes (initial_alphabet) or has an id twice")
        return open_gpt2_kind(content, own) or Library(content)
    except ImportError:
        raise ValueError(f"{path} is not of GPT-2's kind: pip install tokenizers") from None
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no tokenizer.json that opens here: {error}") from None


def open_gpt2_kind(content, own):
    """Return a Renumbered, or None where the file sets something that GPT-2's does not."""
    model, step = content["model"], content["pre_tokenizer"] or {}
    added = content.get("added_tokens") or []
    kind = model.get("type", "BPE"), step.get("type"), step.get("use_regex", True)
    keys = {key for part in (content, model, step, *added) for key in part if part[key]}
    if (kind != ("BPE", "ByteLevel", True) or not keys <= GPT2_SETS
            or not all(token.get("special") for token in added)):
        return None
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    names, specials = BYTE_ALPHABET + [a + b for a, b in pairs], [t["content"] for t in added]
    ids = [model["vocab"].get(name) for name in names] + [token["id"] for token in added]
    if model["vocab"].keys() - {*specials} == {*names} and sorted(ids) == [*range(len(ids))]:
        number = {name: n for n, name in enumerate(names)}  # our id
        inner = own([(number[a], number[b]) for a, b in pairs], specials, GPT2_PATTERN)
        return Renumbered(inner, ids, content)


class Renumbered(Tokenizer):
    """One of our tokenizers under other ids: `ids` holds the new id of each old one."""

    def __init__(self, inner, ids, content):
        self.special_tokens = {name: ids[i] for name, i in inner.special_tokens.items()}
        self.tokens = {ids[i]: raw for i, raw in inner.tokens.items()}
        self.vocab_size, self.eot_id = len(ids), self.special_tokens.get(END_OF_TEXT)
        self.encode = lambda *given, **more: [ids[i] for i in inner.encode(*given, **more)]
        self.content = lambda: content  # so `save` writes the file as it was


class Library(Tokenizer):
    """A tokenizer that the library `tokenizers` runs; no tokens of its own are added to a text."""

    def __init__(self, content):
        import tokenizers
        text = json.dumps(content | {"truncation": None, "padding": None})
        try:
            self._library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # it raises nothing more special
            raise ValueError(error) from None
        added = self._library.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: i for i, token in added if token.special}
        self.vocab_size = 1 + max(self._library.get_vocab().values())
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.content = lambda: content

    def encode(self, text, allowed_special=()):
        if allowed_special and allowed_special != "all":
            raise ValueError('of this tokenizer allow "all" special tokens, or none')
        text.encode()  # raises ValueError where no UTF-8 can hold the text
        self._library.encode_special_tokens = not allowed_special  # True: they are ordinary text
        return self._library.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids):
        ids = getattr(ids, "tolist", lambda: list(ids))()
        if not all(type(i) is int and 0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"ids are whole numbers from 0 to {self.vocab_size - 1}")
        return self._library.decode(ids, skip_special_tokens=False).encode()

    def decode_stream(self, ids):
        from tokenizers.decoders import DecodeStream
        stream = DecodeStream(skip_special_tokens=False)
        yield from filter(None, (stream.step(self._library, i) for i in ids))
