"""Clean documents → token shards → packed, mixed, resumable batches.

    write_shards(documents, tokenizer.encode, "tokens", vocab_size=2048, eot_id=2047)
    loader = Loader("tokens", batch_size=8, row_length=256, seed=0)
    inputs, targets, document_ids = loader.next_batch()         # each (8, 256) int64

A document is stored as its end-of-text token (eot) and then its tokens. So the eot of the next
document is the target of the last token of this one. Nothing is padded:

    stored    |doc 0|doc 1            |doc 2|     the documents of a source, end to end
    epoch     |1b   |2    |1a   |0    |1c   |     in pieces of at most PIECE tokens, shuffled
    lanes      ─►                ─►               equal slices, each with its own read position

A row is the next T tokens of a lane; T, and the rows of a batch, may change at every step. Every
token is an input exactly once an epoch; its target is the token stored after it.

Packing without padding: GPT-3 (arXiv 2005.14165, §2.4 and appendix B). Rows that lengthen and
batches that grow during training: Li, Zhang and He 2021 (arXiv 2108.06084), GPT-3 (§2.3).
Glossary: *source* a named part of the corpus; *shard* a file of the token ids of one source;
*row* T tokens.
"""

import array
import collections
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile

import numpy as np
import torch

PIECE = 1024  # tokens; attention cannot reach past a piece, so not too few
LANES, LANE_TOKENS = 64, 8192  # at most so many lanes, of at least so many tokens
FORMAT, SPLITS = 2, ("train", "held_out")  # of the token folder
OURS = r"manifest\.json|(train|held_out)-\d\d+-\w*(-lengths\.npy|-\d+\.bin)"  # its files
BATCH_DOCUMENTS = 1024  # encoded together where the encoder takes several texts

# Three int64 tensors (B, T): ids, the id stored after each, and numbers that are equal where two
# inputs share a piece of a document.
Batch = collections.namedtuple("Batch", "inputs targets document_ids")


def write_shards(documents, encode, folder, vocab_size=None, eot_id=None, tokenizer=None,
                 batched=False):
    """Write documents as token shards and return the manifest (a dict, manifest.json in folder).

    documents: an iterable of {"text", "source"} with an optional "split" ("train" unless given)
    and "log2_probability"; encode: text → ids, or with `batched` texts → lists of ids.
    Ids are stored as uint16 where vocab_size allows, else uint32. `tokenizer` is the tokenizer's
    file, of which the sha256 is kept. Tokens that stand in the folder are replaced once the new
    ones are whole; memory stays flat. Raises ValueError when there is no text, or when an id lies
    outside vocab_size.
    """
    folder = pathlib.Path(folder).resolve()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ours = [name for name in names if re.fullmatch(OURS, name)]
    if folder.is_file() or ours == ["manifest.json"]:  # of another program
        raise ValueError(f"{folder} is a file or no token folder: name one of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    small = vocab_size is not None and vocab_size <= 1 << 16
    digest = tokenizer and hashlib.sha256(pathlib.Path(tokenizer).read_bytes()).hexdigest()
    manifest = {"format": FORMAT, "dtype": "uint16" if small else "uint32",
                "vocab_size": vocab_size, "eot_id": eot_id, "tokenizer_sha256": digest}
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as new:
        new = pathlib.Path(new)
        manifest["splits"] = _write_sources(_encoded(documents, encode, batched), new, manifest)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        # Delete manifest.json first and write it last: where it is, its files are complete.
        for name in sorted(ours, key=lambda name: name != "manifest.json"):
            (folder / name).unlink()
        for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
            os.replace(path, folder / path.name)
    return manifest


def _encoded(documents, encode, batched):
    """Yield (document, its ids)."""
    documents = iter(documents)
    while group := list(itertools.islice(documents, BATCH_DOCUMENTS if batched else 1)):
        texts = [document["text"] for document in group]
        yield from zip(group, encode(texts) if batched else map(encode, texts))


def _write_sources(encoded, folder, manifest):
    """Write each source of each split to files of its own; return the manifest's "splits"."""
    writers, size, eot_id = {}, manifest["vocab_size"], manifest["eot_id"]
    for document, ids in encoded:
        ids = np.asarray(ids)
        if size is not None and len(ids) and not 0 <= ids.min() <= ids.max() < size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"an id {wrong} lies outside the vocabulary of {size}: "
                             "encode with the tokenizer whose size was given")
        split, source = key = document.get("split", "train"), document["source"]
        if key not in writers:
            slug = re.sub(r"[^A-Za-z0-9_]+", "_", source)[:40]  # source names are free text
            writers[key] = _SourceWriter(folder, f"{split}-{len(writers):02d}-{slug}")
        ids = ids if eot_id is None else np.append(eot_id, ids)
        writers[key].add(document, ids.astype(manifest["dtype"]))
    if not any(split == "train" for split, _ in writers):
        raise ValueError("no document to train on: the corpus is empty, or all of it is held out")
    return {name: {source: writer.finish() for (split, source), writer in sorted(writers.items())
                   if split == name} for name in SPLITS}


class _SourceWriter:
    """Appends the documents of one source and split to their shard."""

    def __init__(self, folder, name):
        self.folder, self.name, self.sha256 = folder, name, hashlib.sha256()
        self.file = open(folder / f"{name}-000.bin", "wb")
        self.lengths, self.text_bytes, self.log2_probability = array.array("Q"), 0, 0.0

    def add(self, document, ids):
        self.file.write(ids)
        self.sha256.update(ids)
        self.lengths.append(len(ids))
        self.text_bytes += len(document["text"].encode("utf-8"))
        self.log2_probability += document.get("log2_probability", float("nan"))  # NaN: unknown

    def finish(self):
        """Write the lengths of the documents; return what the manifest says of this source."""
        self.file.close()
        path, log2 = self.folder / f"{self.name}-lengths.npy", self.log2_probability
        np.save(path, np.frombuffer(self.lengths, dtype=np.uint64))
        tokens, digest = int(sum(self.lengths)), hashlib.sha256(path.read_bytes()).hexdigest()
        return {"documents": len(self.lengths), "tokens": tokens, "bytes": self.text_bytes,
                "lengths": path.name, "lengths_sha256": digest,
                "shards": [{"file": f"{self.name}-000.bin", "tokens": tokens,
                            "sha256": self.sha256.hexdigest()}],
                "log2_probability": None if np.isnan(log2) else log2}


def read_manifest(folder):
    """Return the manifest of a token folder; raise ValueError when there is none."""
    path = pathlib.Path(folder) / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no manifest.json: build it with python -m nanoseek.data")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError("it is of an older nanoseek")
        return manifest | {"splits": {split: manifest["splits"][split] for split in SPLITS}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: build the tokens again ({error!r})") from None


class TokenStream:
    """The tokens of one source and split, as a memory map; documents by number.

    Raises ValueError when a file is missing, cut short or (with verify) altered.
    """

    def __init__(self, folder, entry, dtype, verify=True):
        folder, itemsize = pathlib.Path(folder), np.dtype(dtype).itemsize
        self._open(folder / entry["lengths"], None, entry["lengths_sha256"])
        self.lengths = np.load(folder / entry["lengths"]).astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = int(self.lengths.sum())
        shards = [self._open(folder / shard["file"], shard["tokens"] * itemsize,
                             verify and shard["sha256"]) for shard in entry["shards"]]
        # Older versions cut a large source into several files, which memory must hold together.
        self.ids = (shards[0] if len(shards) == 1 else np.concatenate(shards)).view(dtype)

    @staticmethod
    def _open(path, size, sha256):
        """Return the bytes of a file as a memory map; size, sha256: as they must be, or None."""
        if not path.is_file() or size not in (None, path.stat().st_size):
            raise ValueError(f"{path} is missing or cut short: build the tokens again")
        found = np.asarray(np.memmap(path, mode="r")) if path.stat().st_size else np.empty(0, "u1")
        if sha256 and hashlib.sha256(found).hexdigest() != sha256:
            raise ValueError(f"{path} was altered (its sha256 differs): build the tokens again")
        return found

    def __len__(self):
        return len(self.lengths)

    def read(self, positions):
        """Return the ids at these positions (both int64); after the last token comes the first."""
        return self.ids[positions % self.tokens].astype(np.int64)

    def document(self, number):
        """Return the ids (int64) of document `number`."""
        return self.read(self.starts[number] + np.arange(self.lengths[number]))


class _Epochs:
    """The tokens of a TokenStream, shuffled anew in each epoch and read at many places in turn.

    An epoch is cut in lanes of equal length. A row is read where most is `unread`, so that the
    rows of a batch lie far apart.
    """

    def __init__(self, stream, seed):
        self.stream, self.seed, self.laid_out = stream, seed, None
        lanes = max(1, min(LANES, stream.tokens // LANE_TOKENS))
        self.lane_ends = np.linspace(0, stream.tokens, lanes + 1).astype(np.int64)[1:]
        self.epoch, self.unread = 0, np.diff(self.lane_ends, prepend=0)  # tokens of each lane

    @property
    def served(self):
        return (self.epoch + 1) * self.stream.tokens - int(self.unread.sum())

    def _lay_out(self):
        """Cut the documents in pieces and shuffle these.

        Finds the `starts` of the pieces in the stream and their `places` in the epoch.
        """
        random, stream = np.random.default_rng([*self.seed, self.epoch]), self.stream
        # The first piece of a long document has another length in each epoch, so that the cuts
        # fall elsewhere. In the stream, a piece ends where the next one starts.
        first = PIECE - random.integers(PIECE)
        cuts = [np.arange(stream.starts[n] + first, stream.starts[n] + stream.lengths[n], PIECE)
                for n in np.flatnonzero(stream.lengths > PIECE)]
        starts = np.sort(np.concatenate([stream.starts[stream.lengths > 0], *cuts]))
        lengths = np.diff(starts, append=stream.tokens)
        order = random.permutation(len(starts))
        self.starts, self.laid_out = starts[order], self.epoch
        self.places = np.cumsum(lengths[order]) - lengths[order]

    def row(self, length):
        """Return the next row, (3, length) int64: inputs, targets, numbers of their pieces."""
        parts, pieces = [], 0  # pieces: how many are in the row already
        while length:
            if not self.unread.any():
                self.epoch, self.unread = self.epoch + 1, np.diff(self.lane_ends, prepend=0)
            if self.epoch != self.laid_out:
                self._lay_out()
            lane = int(self.unread.argmax())
            count = min(length, int(self.unread[lane]))
            places = self.lane_ends[lane] - self.unread[lane] + np.arange(count)  # in the epoch
            self.unread[lane] -= count
            length -= count
            piece = np.searchsorted(self.places, places, side="right") - 1  # of each token
            positions = self.starts[piece] + places - self.places[piece]  # in the stream
            ids = self.stream.read(np.stack((positions, positions + 1)))  # inputs, targets
            # Pieces are numbered on from those of the part before.
            parts.append(np.concatenate((ids, pieces + piece[None] - piece[0])))
            pieces = parts[-1][2, -1] + 1
        return np.concatenate(parts, axis=1)


class Loader:
    """Serve batches of packed rows, mixed from the sources by weight; its state is a small dict.

    weights: {source: share}, in proportion to tokens unless given; they are met to within one row.
    rank and world: this process serves rows rank, rank + world, … of each batch. The state counts
    tokens, of all ranks together, so it restores the stream under another number of ranks, batch
    size or row length. Raises ValueError for unknown sources, weights that do not sum to 1, a
    source shorter than a row, a batch that the ranks do not divide, or a state of other sources.
    """

    def __init__(self, folder, batch_size, row_length, weights=None, seed=0, split="train",
                 rank=0, world=1, verify=True):
        self.batch_size, self.row_length, self.seed = batch_size, row_length, seed
        self.rank, self.world, self.sources = rank, world, {}
        manifest = read_manifest(folder)
        entries = manifest["splits"][split]
        self.weights = _weights(weights, entries)
        for source in self.weights:
            stream = TokenStream(folder, entries[source], manifest["dtype"], verify)
            # The name is part of the seed, so that two sources are not shuffled alike.
            key = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big")
            self.sources[source] = _Epochs(stream, (seed, key))
        self._check_sizes(batch_size, row_length)

    def _check_sizes(self, batch_size, row_length):
        if batch_size < 1 or row_length < 1 or batch_size % self.world:
            raise ValueError(f"batch_size {batch_size} and row_length {row_length} must be at "
                             f"least 1, and {self.world} ranks must divide the batch")
        for source, epochs in self.sources.items():
            if epochs.stream.tokens < row_length:
                raise ValueError(f"source {source!r} has {epochs.stream.tokens} tokens, too few "
                                 f"for one row of {row_length}: add text or shorten the rows")

    def next_batch(self, batch_size=None, row_length=None):
        """Return the next Batch of this rank: batch_size / world rows of row_length tokens.

        Both may change at every step, on all ranks alike; unless given, they are the loader's.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        row_length = self.row_length if row_length is None else row_length
        self._check_sizes(batch_size, row_length)
        rows = []
        for _ in range(batch_size):
            # No chance: the source that is furthest behind its share comes next.
            served = {name: epochs.served for name, epochs in self.sources.items()}
            total = sum(served.values()) + row_length
            source = max(self.weights, key=lambda name: self.weights[name] * total - served[name])
            rows.append(self.sources[source].row(row_length))
        rows = rows[self.rank::self.world]  # every rank reads all, and so knows where all stand
        return Batch(*torch.from_numpy(np.stack(rows, axis=1)))  # (3, B, T)

    def state_dict(self):
        """Return the place in the stream, fit for JSON: epoch and unread tokens by lane."""
        return {"seed": self.seed, "sources": {
            source: {"epoch": epochs.epoch, "left": epochs.unread.tolist()}
            for source, epochs in self.sources.items()}}

    def load_state_dict(self, state):
        """Go to a position that state_dict returned."""
        places = state.get("sources", {})
        if state["seed"] != self.seed or places.keys() != self.sources.keys() or any(
                len(places[name]["left"]) != len(e.unread) for name, e in self.sources.items()):
            raise ValueError("the loader's state belongs to other sources or another seed")
        for source, epochs in self.sources.items():
            epochs.epoch = places[source]["epoch"]
            epochs.unread = np.array(places[source]["left"])


def _weights(weights, entries):
    """Return {source: share} that sum to 1: those given, or each source's share of the tokens."""
    total = sum(entry["tokens"] for entry in entries.values())
    if not total:
        raise ValueError("this split holds no documents, or empty ones only")
    if weights is None:
        return {source: entry["tokens"] / total for source, entry in entries.items()}
    if unknown := sorted(set(weights) - set(entries)):
        raise ValueError(f"no source is called {unknown[0]!r}, or all of it is held out: "
                         f"there are {', '.join(entries)}")
    if min(weights.values()) < 0 or not abs(sum(weights.values()) - 1) <= 1e-6:  # also NaN
        raise ValueError(f"the weights {weights} must be at least 0 and sum to 1")
    return {source: weight for source, weight in weights.items() if weight}


if __name__ == "__main__":
    from nanoseek.cli import hand_over, run
    run(lambda: hand_over("nanoseek.lab.stages", None, "encode"))
