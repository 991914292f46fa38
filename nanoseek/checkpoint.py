"""A checkpoint is a folder that Hugging Face's Llama opens, with the trainer's state beside it.

    save_model(model, "folder", "tokenizer.json")    # config.json, model.safetensors, tokenizer
    model = load_model("folder")                     # also a published Llama-family folder

A run keeps its checkpoints in run/checkpoints/step-00000100/. Each is written into a temporary
folder, synced and renamed, so that a half-written one never has a checkpoint's name, and holds
the sha256 of every file. There is no pickle anywhere: tensors are safetensors, the rest is JSON,
so that opening a stranger's checkpoint runs none of their code."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import textwrap

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanoseek.cost import parameters
from nanoseek.model import Transformer
from nanoseek.scale.hugging_face import adopt, from_hugging_face, to_hugging_face
from nanoseek.tokenizer import END_OF_TEXT


def save_model(model, folder, tokenizer=None):
    """Write a Transformer as a folder that transformers opens, whole or not at all.

    tokenizer: the path of a tokenizer.json to go with it. A folder that is there is replaced."""
    with _writing_folder(pathlib.Path(folder).resolve()) as new:  # behind a link, which stays
        _write_model(model, new, tokenizer and pathlib.Path(tokenizer).read_bytes())


def _write_model(model, folder, tokenizer, weights=None):
    eot_id = None
    if tokenizer:
        (folder / "tokenizer.json").write_bytes(tokenizer)
        added = json.loads(tokenizer)["added_tokens"]
        eot_id = next((token["id"] for token in added if token["content"] == END_OF_TEXT), None)
        if (eot_id or 0) >= model.config.vocab_size:
            raise ValueError(f"the tokenizer is another's: its {eot_id} is no id of the model")
        special = None if eot_id is None else END_OF_TEXT
        _write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special,
            "eos_token": special, "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings})
    _write_json(folder / "config.json", to_hugging_face(model.config, eot_id))
    tensors = dict(model.state_dict() if weights is None else weights)
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # safetensors refuses two names for one memory
    _write_tensors(folder / "model.safetensors", tensors)


def load_model(folder):
    """Open a checkpoint folder, ours or a Llama folder of others: a Transformer in fp32, eval mode.

    `folder` may also be a run, of which the newest intact checkpoint is taken. Raises ValueError
    that names the file for a damaged or foreign folder."""
    folder = find_checkpoint(folder)
    config = from_hugging_face(read_json(folder / "config.json"))
    config, tensors = adopt(config, _read_weights(folder))
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        shared = tensors["model.embed_tokens.weight"]
        if not torch.equal(tensors.setdefault("lm_head.weight", shared), shared):
            raise ValueError(f"{folder} has a head of its own: set tie_word_embeddings to false")
    # A damaged config.json could ask for a billion layers, which would be built for hours.
    wanted, found = parameters(config)["total"], sum(t.numel() for t in tensors.values())
    if wanted > 2 * found:
        raise ValueError(f"{folder}: config.json asks for {wanted:,} parameters, but the weights "
                         f"are {found:,}")
    with torch.device("meta"):  # shapes without memory
        model = Transformer(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # it names what is missing, left over, or of another shape
        raise ValueError(f"{folder}: the weights do not fit config.json: "
                         f"{textwrap.shorten(str(error), 300)}") from None
    if config.tie_word_embeddings:  # assigning put two parameters where one was
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(True).eval()


def _read_weights(folder):
    """Return {name: fp32 tensor} of a folder's weights, in one file or in several."""
    files, index = {"model.safetensors"}, folder / "model.safetensors.index.json"
    if index.is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
            raise ValueError(f"{index} is damaged: it holds no weight_map")
        files = {*where.values()}
    return {name: tensor.float() for file in files
            for name, tensor in _read_tensors(folder / file).items()}


def save_checkpoint(run, step, model, tensors, state, tokenizer=None, keep=2, weights=None):
    """Write run/checkpoints/step-N: the model, the trainer's tensors and its state; return it.

    Then remove all but the newest `keep` checkpoints and the best: that with the lowest "score"
    in its state, where there is one. tokenizer: the bytes of tokenizer.json as the run began with
    it. weights: the model's tensors, where each rank holds a slice of them."""
    folder = pathlib.Path(run) / "checkpoints" / f"step-{step:08d}"
    for stale in folder.parent.glob(".writing-*"):  # of this run, when it was killed while it saved
        shutil.rmtree(stale, ignore_errors=True)
    with _writing_folder(folder) as new:
        _write_model(model, new, tokenizer, weights)
        _write_tensors(new / "trainer.safetensors", tensors)
        _write_json(new / "trainer.json", state)
    # Later ones do not count: they were damaged, so the run went on from before them.
    known = [other for other in checkpoints(run) if other.name <= folder.name]
    best = min(reversed(known), key=_score)
    for old in {*known[:-keep]} - {best}:  # a run killed meanwhile leaves a half: see `verify`
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _score(folder):
    """Return the mean bits per byte that a checkpoint was saved with; infinity where unknown."""
    with contextlib.suppress(ValueError, TypeError):  # damaged: not the best
        if 0 < (score := read_json(folder / "trainer.json").get("score")) < math.inf:
            return score
    return math.inf


def load_checkpoint(folder):
    """Return (tensors, state) that save_checkpoint stored; load_model opens the weights."""
    folder = pathlib.Path(folder)
    return _read_tensors(folder / "trainer.safetensors"), read_json(folder / "trainer.json")


def checkpoints(run):
    """Return the checkpoint folders of a run, oldest first, intact or not."""
    # Only names that save_checkpoint gives: a copy that the reader keeps there is left alone.
    return sorted(path for path in (pathlib.Path(run) / "checkpoints").glob("step-*")
                  if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def newest_intact(run, say=print, best=False):
    """Return the newest undamaged checkpoint folder of a run, or None; name the damaged ones.
    best: that of the lowest score, where any was saved with one."""
    for folder in sorted(reversed(checkpoints(run)), key=_score if best else lambda _: 0):
        try:
            verify(folder)
            return folder
        except ValueError as error:
            say(f"passed over a damaged checkpoint: {error}")
    return None


def find_checkpoint(folder, best=False):
    """Return `folder` if it holds a model, else the newest intact checkpoint of the run there, or
    the best on held-out text. ValueError if there is neither, or a folder of ours is damaged."""
    folder = pathlib.Path(folder)
    if (folder / "checksums.json").is_file():
        verify(folder)
    if (folder / "config.json").is_file():
        return folder
    if found := newest_intact(folder, lambda text: print(text, file=sys.stderr), best):
        if best and found != checkpoints(folder)[-1] and _score(found) < math.inf:
            print(f"taking {found}, the best on held-out text", file=sys.stderr)
        return found
    raise ValueError(f"{folder} holds no model (config.json) and no intact checkpoint yet: name "
                     "another run or folder, or mend or remove what is damaged")


def verify(folder):
    """Raise ValueError naming the first file of a checkpoint that is missing or altered."""
    known = read_json(folder / "checksums.json")
    needed = {"config.json", "model.safetensors", *(p.name for p in folder.glob("trainer.*"))}
    if left_out := needed - known.keys():
        raise ValueError(f"{folder}/checksums.json is damaged: it does not list {min(left_out)}")
    for name, digest in known.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is damaged or missing (see its sha256 in checksums.json)")


@contextlib.contextmanager
def _writing_folder(folder):
    """Yield a new folder, which takes the place of `folder` when the block ends well."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as room:
        new, old = pathlib.Path(room, "new"), pathlib.Path(room, "old")
        new.mkdir()
        yield new
        _write_json(new / "checksums.json", {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(new.iterdir())})
        # Onto the disk, before the name: after a power cut, files could be empty otherwise.
        for path in new.iterdir():
            shutil.copymode(new / "checksums.json", path)  # safetensors shuts out all but the owner
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        finally:
            if not folder.exists() and old.exists():
                os.replace(old, folder)


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def trusting(*paths):
    """Name the files in a ValueError where values from them, used in the block, do not fit."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{' or '.join(map(str, paths))} is damaged: {error!r}") from None


def read_json(path):
    """Return the object of a JSON file; raise ValueError where it is missing or damaged."""
    try:
        # A pipe would be waited for.
        return {**json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or missing: {error}") from None


def _write_tensors(path, tensors):
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:  # as it calls a full disk
        raise OSError(f"{path} could not be written: {error}") from None


def _read_tensors(path):
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or missing: {error} (weights must be safetensors: a "
                         "pickle could run a stranger's code and is not opened)") from None
