"""Open any folder for judging: a model that reads text, and text that it was not trained on.

    subject = open_subject("runs/tiny")                  # or a Llama folder of others
    documents = held_out_documents("clean.jsonl")        # {source: [document]}
    found, nats = score(subject, "stories_en", documents["stories_en"])

Scored text must be new to a model. A run remembers where its documents lie, so whether it was
trained on one can be looked up; of models of others nobody knows.
"""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import torch

from nanoseek.checkpoint import find_checkpoint, read_json
from nanoseek.corpus import read_documents
from nanoseek.evaluate import Score, document_nats, unigram_nats
from nanoseek.fast import speed_up
from nanoseek.generate import load
from nanoseek.lab.cloze import digest

SMALL = 4_000_000  # weights of a model that one core scores as fast as two (measured: 1.4 million)


class Subject(NamedTuple):
    """A model with what it needs to read text."""

    model: Any
    tokenizer: Any
    begin: int | None  # the id before a document
    end: int | None  # the id after it
    tokens: pathlib.Path | None  # the folder of the tokens that a run was trained on

    def ids(self, text, whole=True):
        """Return the ids (int64 array) of a text behind `begin`, and before `end` when whole."""
        begin, end = ([] if i is None else [i] for i in (self.begin, self.end if whole else None))
        return np.array([*begin, *self.tokenizer.encode(text), *end], dtype=np.int64)


def open_subject(folder, fast=True):
    """Return the Subject of a run, a checkpoint or a Llama folder with a tokenizer.json.

    The ids that begin and end a document are those of its config.json (bos, eos), else the
    tokenizer's end-of-text. Raises ValueError when the vocabulary does not fit the model.
    """
    manifest, folder = find_in_run(folder, "tokens/manifest.json"), find_checkpoint(folder)
    model, tokenizer = load(folder)
    size = model.config.vocab_size
    if tokenizer.vocab_size > size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
                         f"{size}: they do not belong together")
    settings = read_json(folder / "config.json")
    begin, end = (settings.get(f"{kind}_token_id") for kind in ("bos", "eos"))
    end = next(iter(end), None) if isinstance(end, list) else end  # Llama 3 lists several
    for value in (begin, end):
        if value is not None and (type(value) is not int or not 0 <= value < size):
            raise ValueError(f"{folder / 'config.json'}: {value!r} begins or ends a document, but "
                             f"the model has ids from 0 to {size - 1}")
    end = tokenizer.eot_id if end is None else end
    return Subject(speed_up(model) if fast else model, tokenizer, end if begin is None else begin,
                   end, manifest and manifest.parent)


def spare_threads(*models):
    """Let a command whose models are all small compute on one core.

    Their matrices are too small to share out, and where another program holds a core, a thread
    that waits for it at every one of them takes many times as long.
    """
    if all(sum(p.numel() for p in model.parameters()) < SMALL for model in models):
        torch.set_num_threads(1)


def find_in_run(folder, name):
    """Return the path of a run's file, given the run, one of its checkpoints, or a run that took
    its tokens from elsewhere; None where there is none."""
    folder = pathlib.Path(folder)
    paths = [folder / name]
    if folder.parent.name == "checkpoints":
        paths.append(folder.parent.parent / name)
    state = find_checkpoint(folder) / "trainer.json"
    if name != "cost.json" and state.is_file():  # another run's bill is not this one's
        config = read_json(state).get("config")
        if not isinstance(config, dict) or not isinstance(config.get("tokens"), str | None):
            raise ValueError(f"{state} is damaged: it holds no config of a run")
        if config.get("tokens"):
            tokens = pathlib.Path(config["tokens"])
            paths += [tokens.parent / name, tokens / paths[0].name]
    return next((path for path in paths if path.is_file()), None)


# --- Documents ----------------------------------------------------------------------------------

def held_out_documents(path):
    """Return {source: [document]} of a JSON lines file: the held-out ones where it has a split.

    Raises ValueError when there are none.
    """
    documents = [d for d in read_documents(path) if d["text"].strip()]
    if any("split" in d for d in documents):
        documents = [d for d in documents if d.get("split") == "held_out"]
    if not documents:
        raise ValueError(f"{path} holds no held-out document: name a file of JSON lines with text "
                         "that no model was trained on")
    found = {}
    for document in documents:
        found.setdefault(document["source"], []).append(document)
    return found


def trained_on(folder):
    """Return the digests of the documents that a run was trained on; empty where unknown."""
    path = find_in_run(folder, "clean.jsonl")
    return {digest(d["text"]) for d in read_documents(path)
            if d.get("split") != "held_out"} if path else set()


def score(subject, source, documents):
    """Return (the Score of documents of one source, the nats of each: float64 array).

    The end of a document is part of it. Where nothing can begin a document, its first token is
    charged as drawn evenly from all.
    """
    ids = [subject.ids(d["text"]) for d in documents]
    size = sum(len(d["text"].encode("utf-8")) for d in documents)
    nats_at_one_bit = size * math.log(2)
    nats, vocab_size = document_nats(subject.model, ids), subject.model.config.vocab_size
    if subject.begin is None:
        nats += math.log(vocab_size)
    floor = unigram = None
    if all("log2_probability" in d for d in documents):
        floor = -sum(d["log2_probability"] for d in documents) / size
    if subject.tokens:
        unigram = unigram_nats(subject.tokens, source, ids, vocab_size) / nats_at_one_bit
    return Score(len(documents), size, nats.sum() / nats_at_one_bit, floor, unigram), nats
