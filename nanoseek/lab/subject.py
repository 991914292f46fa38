"""Open any folder for judging: a model that reads text, and text that it was not trained on.

    subject = open_subject("runs/tiny")                  # or a Llama folder of others
    documents = held_out_documents("clean.jsonl")        # {source: [document]}
    found, nats = score(subject, "stories_en", documents["stories_en"])

Scored text must be new to a model: of a run, the documents that it was trained on can be found.
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

    Documents begin and end as its config.json says (bos, eos), else with the end-of-text.
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
            raise ValueError(f"{folder}: {value!r}, which begins or ends a document, is no id")
    end = tokenizer.eot_id if end is None else end
    return Subject(speed_up(model) if fast else model, tokenizer, end if begin is None else begin,
                   end, manifest and manifest.parent)


def spare_threads(*models):
    """Let a command whose models are all small compute on one core: their matrices are too small to
    share out, and to wait for a core that another program holds takes many times as long."""
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
        try:
            tokens = pathlib.Path(read_json(state)["config"].get("tokens") or folder / "tokens")
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{state} is damaged: it holds no config of a run") from None
        paths += [tokens.parent / name, tokens / paths[0].name]
    return next((path for path in paths if path.is_file()), None)


def held_out_documents(path):
    """Return {source: [document]} of a JSON lines file, but for what it marks as training text."""
    found = {}
    for document in read_documents(path):
        if document["text"].strip() and document.get("split", "held_out") == "held_out":
            found.setdefault(document["source"], []).append(document)
    if not found:
        raise ValueError(f"{path} holds no held-out document, which is what can be scored")
    return found


def trained_on(folder):
    """Return the digests of the documents that a run was trained on; empty where unknown."""
    path = find_in_run(folder, "clean.jsonl")
    return {digest(d["text"]) for d in read_documents(path)
            if d.get("split") != "held_out"} if path else set()


def score(subject, source, documents):
    """Return (the Score of documents of one source, the nats of each with its end, float64 array).

    Where nothing can begin a document, its first token is charged as drawn evenly from all.
    """
    ids = [subject.ids(d["text"]) for d in documents]
    size = sum(len(d["text"].encode("utf-8")) for d in documents)
    one_bit = size * math.log(2)  # the nats at one bit per byte
    nats, vocab_size = document_nats(subject.model, ids), subject.model.config.vocab_size
    if subject.begin is None:
        nats += math.log(vocab_size)
    floor = -sum(d["log2_probability"] for d in documents) / size \
        if all("log2_probability" in d for d in documents) else None
    unigram = subject.tokens and unigram_nats(subject.tokens, source, ids, vocab_size) / one_bit
    return Score(len(documents), size, nats.sum() / one_bit, floor, unigram), nats
