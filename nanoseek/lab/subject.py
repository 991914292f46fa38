"""Open any folder for judging: a model that reads text, and text that it was not trained on.

    subject = open_subject("runs/tiny")                  # or a Llama folder of others
    documents = held_out_documents("clean.jsonl")        # {source: [document]}
    nats = document_nats(subject.model, [subject.ids("Once there was a boy.")])"""

import pathlib
from collections import namedtuple

import numpy as np
import torch

from nanoseek.checkpoint import find_checkpoint, load_model, read_json, trusting
from nanoseek.corpus import read_documents
from nanoseek.fast import speed_up
from nanoseek.tokenizer import Tokenizer

SMALL = 4_000_000  # weights of a model that one core scores as fast as two (measured: 1.4 million)


class Subject(namedtuple("Subject", "model tokenizer begin end folder run tokens")):
    """A model with what it needs to read text. begin, end: the ids before and after a document;
    run: the run's folder; tokens: what it was trained on, with clean.jsonl beside that folder."""
    def ids(self, text, whole=True):
        """Return the ids (int64 array) of a text behind `begin`, and before `end` when whole."""
        ids = [self.begin, *self.tokenizer.encode(text), self.end]
        return np.array(ids if whole else ids[:-1], dtype=np.int64)


def open_subject(folder, fast=True):
    """Return the Subject of a run, a checkpoint or a Llama folder with a tokenizer.json."""
    folder = find_checkpoint(folder, best=True)
    model, tokenizer = load_model(folder), Tokenizer.load(folder / "tokenizer.json")
    size = model.config.vocab_size
    if tokenizer.vocab_size > size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
                         f"{size}: they do not belong together")
    begin, ends = document_ends(folder, tokenizer, size)
    if not ends:
        raise ValueError(f"{folder}: no id ends a document: name it in config.json, eos_token_id")
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    state = folder / "trainer.json"
    with trusting(state):
        config = read_json(state)["config"] if state.is_file() else {}
        tokens = pathlib.Path(config.get("tokens") or run / "tokens")
    return Subject(speed_up(model) if fast else model, tokenizer, begin[0], ends[0], folder, run,
                   tokens)


def document_ends(folder, tokenizer, size):
    """Return the ids that begin a document and those that may end it, two lists: as config.json or
    generation_config.json says (bos, eos), else the end-of-text; empty where there is none."""
    settings = {"eos_token_id": tokenizer.eot_id}
    for path in (folder / "config.json", folder / "generation_config.json"):
        found = read_json(path) if path.is_file() else {}
        settings |= {name: value for name, value in found.items() if value is not None}
    ends = settings["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends] * (ends is not None)  # Llama 3 lists several
    begin = [settings["bos_token_id"]] if "bos_token_id" in settings else ends[:1]
    for value in begin + ends:
        if type(value) is not int or value not in range(size):
            raise ValueError(f"{folder}: {value!r}, which begins or ends a document, is no id")
    return begin, ends


def spare_threads(*models):
    """Let a command whose models are all small compute on one core: their matrices are too small to
    share out, and to wait for a core that another program holds takes many times as long."""
    if all(sum(p.numel() for p in model.parameters()) < SMALL for model in models):
        torch.set_num_threads(1)


def held_out_documents(path):
    """Return {source: [document]} of a JSON lines file, but for what it marks as training text."""
    found = {}
    for document in read_documents(path):
        if document["text"].strip() and document.get("split", "held_out") == "held_out":
            found.setdefault(document["source"], []).append(document)
    if not found:
        raise ValueError(f"{path} holds no held-out document, which is what can be scored")
    return found


def trained_on(subject):
    """Return the texts that a run was trained on, a set; empty where they are unknown."""
    path = subject.tokens.parent / "clean.jsonl"
    return {d["text"].strip() for d in (read_documents(path) if path.is_file() else ())
            if d.get("split") != "held_out"}
