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

Packing without padding: GPT-3 (arXiv 2005.14165, §2.4 and appendix B), batches that grow: §2.3.
Glossary: *source* a named part of the corpus; *shard* a file of the token ids of one source."""

import array
import collections
import hashlib
import itertools
import json
import pathlib
import re
import tempfile

import numpy as np
import torch

PIECE = 1024  # tokens; attention cannot reach past a piece, so not too few
LANES, LANE_TOKENS = 64, 8192  # at most so many lanes, of at least so many tokens
FORMAT, SPLITS = 2, ("train", "held_out")  # of the token folder
OURS = r"manifest\.json|(train|held_out)-\d\d+-\w*(-lengths\.npy|-\d+\.bin)"  # its files
BATCH_DOCUMENTS = 1024  # encoded together

# Three int64 tensors (B, T); document_ids are equal where two inputs share a piece of a document.
Batch = collections.namedtuple("Batch", "inputs targets document_ids")


def write_shards(documents, encode, folder, vocab_size=None, eot_id=None, tokenizer=None,
                 batched=False):
    """Write documents as token shards and return the manifest (a dict, manifest.json in folder).

    documents: an iterable of {"text", "source"} with an optional "split" ("train" unless given) and
    "log2_probability"; encode: text → ids, or with `batched` texts → lists of ids; tokenizer: its
    file, whose sha256 is kept. Memory stays flat; tokens in the folder are replaced once the new
    ones are whole. ValueError without a text, or for an id out of range."""
    folder = pathlib.Path(folder).resolve()
    ours = [path for path in folder.glob("*") if re.fullmatch(OURS, path.name)]
    if folder.is_file() or ours == [folder / "manifest.json"]:  # of another program
        raise ValueError(f"{folder} is a file or no token folder: name one of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    small = vocab_size is not None and vocab_size <= 1 << 16
    digest = tokenizer and hashlib.sha256(pathlib.Path(tokenizer).read_bytes()).hexdigest()
    manifest = {"format": FORMAT, "dtype": "uint16" if small else "uint32",
                "vocab_size": vocab_size, "eot_id": eot_id, "tokenizer_sha256": digest}
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as new:
        new = pathlib.Path(new)
        manifest["splits"] = _write_sources(documents, encode, batched, new, manifest)
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        # manifest.json goes first and comes last: where it is, its files are complete.
        for path in sorted(ours, key=lambda path: path.name != "manifest.json"):
            path.unlink()
        for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
            path.replace(folder / path.name)
    return manifest


def _write_sources(documents, encode, batched, folder, manifest):
    """Write each source of each split to a shard; return the manifest's "splits"."""
    shards, documents = {}, iter(documents)  # shards: (split, source) → _Shard
    size, eot_id = manifest["vocab_size"] or 1 << 32, manifest["eot_id"]
    while group := list(itertools.islice(documents, BATCH_DOCUMENTS)):
        if wrong := [d for d in group if not isinstance(d, dict) or not {"text", "source"} <= {*d}]:
            raise ValueError(f'{wrong[0]!r:.60} is no document: {{"text": "…", "source": "…"}}')
        texts = [document["text"] for document in group]
        for document, ids in zip(group, encode(texts) if batched else map(encode, texts)):
            ids = np.asarray(ids)
            if len(wrong := ids[(ids < 0) | (ids >= size) | (ids % 1 != 0)]):
                raise ValueError(f"id {wrong[0]} lies outside the vocabulary of {size}")
            ids = ids if eot_id is None else np.append(eot_id, ids)
            split, source = key = document.get("split", "train"), document["source"]
            if split not in SPLITS:
                raise ValueError(f"split {split!r}: choose {' or '.join(SPLITS)}")
            if key not in shards:
                slug = re.sub(r"[^A-Za-z0-9_]+", "_", source)[:40]  # source names are free text
                shards[key] = _Shard(folder / f"{split}-{len(shards):02d}-{slug}")
            shards[key].append(document, ids.astype(manifest["dtype"]))
    if "train" not in [split for split, _ in shards]:
        raise ValueError("no document to train on: the corpus is empty, or all of it is held out")
    return {name: {source: shard.finish() for (split, source), shard in sorted(shards.items())
                   if split == name} for name in SPLITS}


class _Shard:
    """The tokens of one source and split while they are written."""
    def __init__(self, path):
        self.path, self.file = path, open(f"{path}-000.bin", "wb")  # path: without its ending
        self.sha256, self.lengths = hashlib.sha256(), array.array("Q")
        self.text_bytes, self.log2_probability = 0, 0.0

    def append(self, document, ids):
        self.file.write(ids)
        self.sha256.update(ids)
        self.lengths.append(len(ids))
        self.text_bytes += len(document["text"].encode("utf-8"))
        self.log2_probability += document.get("log2_probability", float("nan"))  # NaN: unknown

    def finish(self):
        """Write the lengths of the documents; return what the manifest says of this source."""
        self.file.close()
        path, tokens = pathlib.Path(f"{self.path}-lengths.npy"), sum(self.lengths)
        np.save(path, np.frombuffer(self.lengths, np.uint64))
        digest, log2 = hashlib.sha256(path.read_bytes()).hexdigest(), self.log2_probability
        return {"documents": len(self.lengths), "tokens": tokens, "bytes": self.text_bytes,
                "lengths": path.name, "lengths_sha256": digest,
                "shards": [{"file": f"{self.path.name}-000.bin", "tokens": tokens,
                            "sha256": self.sha256.hexdigest()}],
                "log2_probability": None if np.isnan(log2) else log2}


def read_manifest(folder):
    """Return the manifest of a token folder; raise ValueError when there is none."""
    try:
        manifest = json.loads(pathlib.Path(folder, "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["dtype"] not in ("uint16", "uint32"):
            raise ValueError("it is of an older nanoseek")
        kinds = [(manifest, "vocab_size eot_id", int | None)]
        for entry in (each for split in SPLITS for each in manifest["splits"][split].values()):
            kinds += [(entry, "documents tokens bytes", int), (entry, "log2_probability",
                      float | None), (entry, "lengths lengths_sha256", str)]
            for shard in entry["shards"]:
                kinds += [(shard, "tokens", int), (shard, "file sha256", str)]
        if not all(isinstance(d[name], kind) for d, names, kind in kinds for name in names.split()):
            raise ValueError("a value in it is of another type")
        return manifest | {"splits": {split: {
            source: entry for source, entry in manifest["splits"][split].items() if entry["bytes"]}
            for split in SPLITS}}  # sources of empty documents alone cannot be scored
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds no manifest.json that can be read: build the tokens "
                         f"with python -m nanoseek.data ({error!r})") from None


class TokenStream:
    """The tokens of one source and split, as a memory map; ValueError for a damaged file."""
    def __init__(self, folder, entry, dtype, verify=True):
        folder = pathlib.Path(folder)
        self._open(folder / entry["lengths"], None, entry["lengths_sha256"])
        self.lengths = np.load(folder / entry["lengths"]).astype(np.int64)
        self.starts, self.tokens = np.cumsum(self.lengths) - self.lengths, int(self.lengths.sum())
        shards = [self._open(folder / shard["file"], shard["tokens"] * np.dtype(dtype).itemsize,
                             verify and shard["sha256"]) for shard in entry["shards"]]
        # Older versions cut a large source into several files, which memory must hold together.
        self.ids = (shards[0] if len(shards) == 1 else np.concatenate(shards)).view(dtype)

    @staticmethod
    def _open(path, size, sha256):
        """Return the bytes of a file as a memory map; size, sha256: as they must be, or None."""
        whole = path.is_file() and size in (None, path.stat().st_size)
        found = np.memmap(path, mode="r") if whole and path.stat().st_size else np.empty(0, "u1")
        if not whole or sha256 and hashlib.sha256(found).hexdigest() != sha256:
            raise ValueError(f"{path} is missing, cut short or altered: build the tokens again")
        return np.asarray(found)

    def read(self, positions):
        """Return the ids at these positions (both int64); after the last token comes the first."""
        return self.ids[positions % self.tokens].astype(np.int64)

    def document(self, number):
        """Return the ids (int64) of document `number`."""
        return self.read(self.starts[number] + np.arange(self.lengths[number]))


class _Epochs:
    """The tokens of a TokenStream, shuffled anew in each epoch and read in lanes."""
    def __init__(self, stream, seed):
        self.stream, self.seed = stream, seed
        lanes = max(1, min(LANES, stream.tokens // LANE_TOKENS))
        self.lane_ends = np.linspace(0, stream.tokens, lanes + 1).astype(np.int64)[1:]
        self.begin(0)

    def begin(self, epoch, unread=None):
        """Cut the documents in pieces and shuffle these; unread: how much of each lane is left."""
        stream, random = self.stream, np.random.default_rng([*self.seed, epoch])
        self.unread = np.diff(self.lane_ends, prepend=0) if unread is None else np.array(unread)
        self.epoch, self.served = epoch, (epoch + 1) * stream.tokens - int(self.unread.sum())
        # The first piece of a long document has another length in each epoch, so that the cuts
        # fall elsewhere. In the stream, a piece ends where the next one starts.
        first = PIECE - random.integers(PIECE)
        cuts = [np.arange(stream.starts[n] + first, stream.starts[n] + stream.lengths[n], PIECE)
                for n in np.flatnonzero(stream.lengths > PIECE)]
        starts = np.sort(np.concatenate([stream.starts[stream.lengths > 0], *cuts]))
        lengths = np.diff(starts, append=stream.tokens)
        order = random.permutation(len(starts))
        # Of each piece, in their new order: where it stands in the stream, and in the epoch.
        self.starts, self.places = starts[order], np.cumsum(lengths[order]) - lengths[order]

    def row(self, length):
        """Return the next row, (3, length) int64: inputs, targets, numbers of their pieces."""
        parts, pieces = [], 0  # pieces: how many are in the row already
        while length:
            if not self.unread.any():
                self.begin(self.epoch + 1)
            lane = int(self.unread.argmax())  # so that the rows of a batch lie far apart
            count = min(length, int(self.unread[lane]))
            places = self.lane_ends[lane] - self.unread[lane] + np.arange(count)  # in the epoch
            self.unread[lane] -= count
            self.served += count
            length -= count
            piece = np.searchsorted(self.places, places, side="right") - 1  # of each token
            positions = self.starts[piece] + places - self.places[piece]  # in the stream
            ids = self.stream.read(np.stack((positions, positions + 1)))  # inputs, targets
            parts.append(np.concatenate((ids, pieces + piece[None] - piece[0])))
            pieces = parts[-1][2, -1] + 1
        return np.concatenate(parts, axis=1)


class Loader:
    """Serve batches of packed rows, mixed from the sources by weight; its state is a small dict.

    weights: {source: share}, in proportion to tokens unless given; met to within one row. rank and
    world: this process serves rows rank, rank + world, … of a batch. The state counts the tokens of
    all ranks: it fits other ranks, batch sizes, row lengths. ValueError for what does not fit."""
    def __init__(self, folder, batch_size, row_length, weights=None, seed=0, rank=0, world=1,
                 split="train", verify=True):
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
            raise ValueError(f"sizes are at least 1, and {self.world} ranks must divide the batch")

    def next_batch(self, batch_size=None, row_length=None):
        """Return the next Batch, batch_size / world rows; sizes given here hold for this one."""
        batch_size = self.batch_size if batch_size is None else batch_size
        row_length = self.row_length if row_length is None else row_length
        self._check_sizes(batch_size, row_length)
        rows = []  # of all ranks, so that each knows where all stand
        for _ in range(batch_size):
            # No chance: the source that is furthest behind its share comes next.
            served = {name: epochs.served for name, epochs in self.sources.items()}
            total = sum(served.values()) + row_length
            source = max(self.weights, key=lambda name: self.weights[name] * total - served[name])
            rows.append(self.sources[source].row(row_length))
        return Batch(*torch.from_numpy(np.stack(rows[self.rank::self.world], axis=1)))  # (3, B, T)

    def state_dict(self):
        """Return the place in the stream, fit for JSON: epoch and unread tokens by lane."""
        places = {source: {"epoch": epochs.epoch, "left": epochs.unread.tolist()}
                  for source, epochs in self.sources.items()}
        return {"seed": self.seed, "sources": places}

    def load_state_dict(self, state):
        """Go to a position that state_dict returned."""
        places = state.get("sources", {})
        lanes = {source: len(epochs.unread) for source, epochs in self.sources.items()}
        if state["seed"] != self.seed or lanes != {s: len(p["left"]) for s, p in places.items()}:
            raise ValueError("the loader's state belongs to other sources or another seed")
        for source, place in places.items():
            self.sources[source].begin(int(place["epoch"]), [*map(int, place["left"])])


def _weights(weights, entries):
    """Return {source: share} that sum to 1: those given, or each source's share of the tokens."""
    total = sum(entry["tokens"] for entry in entries.values())
    if not total:
        raise ValueError("this split holds no documents, or empty ones only")
    if weights is None:
        return {source: entry["tokens"] / total for source, entry in entries.items()}
    if unknown := sorted(set(weights) - set(entries)):
        raise ValueError(f"no source is called {unknown[0]!r} that has text in this split: there "
                         f"are {', '.join(entries)}")
    if min(weights.values()) < 0 or not abs(sum(weights.values()) - 1) <= 1e-6:  # also NaN
        raise ValueError(f"the weights {weights} must be at least 0 and sum to 1")
    return {source: weight for source, weight in weights.items() if weight}


def main():
    from nanoseek.cli import hand_over, run
    run(lambda: hand_over("nanoseek.lab.stages", None, "encode"))


if __name__ == "__main__":
    main()
