"""Open tokenizer.json files that others wrote, with the optional package `tokenizers`.

`Tokenizer.load` comes here with each file that its own `save` did not write: normalizers, other
patterns, Unigram and the like are the library's."""

import json
import pathlib

from nanoseek.tokenizer import BYTE_ALPHABET, END_OF_TEXT, Tokenizer


class Library(Tokenizer):
    """A tokenizer that the library `tokenizers` runs; no tokens of its own are added to a text."""
    def __init__(self, path):
        """Open a tokenizer.json; raise ValueError where that fails."""
        try:
            import tokenizers
            content = json.loads(pathlib.Path(path).read_bytes())
            whole = json.dumps(content | {"truncation": None, "padding": None})
            self._library = tokenizers.Tokenizer.from_str(whole)
            ids = self._library.get_vocab()
            self.vocab_size = 1 + max(ids.values())
            # The library lets three kinds of damage pass. Added ids it numbers anew, in silence.
            byte_level = "ByteLevel" in str(content["pre_tokenizer"])
            lacks_bytes = byte_level and not {*BYTE_ALPHABET} <= ids.keys()
            moved = [t for t in content.get("added_tokens") or [] if ids[t["content"]] != t["id"]]
            if lacks_bytes or moved or len({*ids.values()}) < len(ids):
                raise ValueError("its vocabulary lacks bytes (initial_alphabet) or has an id "
                                 "twice, or leaves one out")
        except ImportError:
            raise ValueError(f"{path} is damaged, or a file of others, for which this needs a "
                             "package: pip install tokenizers") from None
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{path} is no tokenizer.json that opens here: {error}") from None
        added = self._library.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: i for i, token in added if token.special}
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.content = lambda: content  # `save` writes the file as it was

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
