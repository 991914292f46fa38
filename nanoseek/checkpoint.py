"""A checkpoint is a folder that Hugging Face's Llama opens, with the trainer's state beside it.

    save_model(model, "folder", "tokenizer.json")    # config.json, model.safetensors, tokenizer
    model = load_model("folder")                     # also a published Llama-family folder

A run keeps its checkpoints in run/checkpoints/step-00000100/. Each is written into a temporary
folder, synced and renamed, so that a half-written one never has a checkpoint's name, and holds
the sha256 of every file. The newest ones and the best are kept. There is no pickle anywhere:
tensors are safetensors, the rest is JSON, so that opening a stranger's checkpoint runs none of
their code.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nanoseek.model import ModelConfig, RopeScaling, Transformer

SPECIAL = "<|endoftext|>"
# The architectures that a Transformer can be. transformers' Llama would ignore a sliding window,
# so a model that has one is its Mistral, which is otherwise the same.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What a config.json leaves out, as transformers fills it in.
DEFAULTS = {"llama": {"sliding_window": None},
            "mistral": {"sliding_window": 4096, "num_key_value_heads": 8}}
# What config.json may say that changes nothing, or only what we never do (sampling, training).
NEUTRAL = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
           "quantization_config": None, "rope_interleaved": False}
IGNORED = {"architectures", "model_type", "rope_parameters", "transformers_version", "torch_dtype",
           "dtype", "use_cache", "pretraining_tp", "attention_dropout", "return_dict", "id2label",
           "label2id", "chunk_size_feed_forward", "bos_token_id", "eos_token_id", "pad_token_id",
           "unk_token_id", "max_length", "auto_map"}


def to_hugging_face(config, eot_id=None):
    """Return the config.json (a dict) of transformers' Llama, or Mistral, for a ModelConfig."""
    kind = "mistral" if config.sliding_window else "llama"
    fields = dataclasses.asdict(config)
    if fields["rope_scaling"]:
        fields["rope_scaling"] = {"rope_type": "llama3", **fields["rope_scaling"]}
    if kind == "llama":
        del fields["sliding_window"]
    return {"architectures": [ARCHITECTURES[kind]], "model_type": kind,
            **fields, "head_dim": config.head_size,
            "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": eot_id, "eos_token_id": eot_id, "torch_dtype": "float32"}


def from_hugging_face(settings):
    """Return the ModelConfig of a config.json; raise ValueError for what we cannot represent."""
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"config.json describes a {kind!r} model: only Llama-family folders "
                         f"(model_type {' or '.join(ARCHITECTURES)}) can be opened")
    settings = {"rope_theta": 10000.0, "tie_word_embeddings": False,
                "num_key_value_heads": settings.get("num_attention_heads"),
                **DEFAULTS[kind], **settings}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    _refuse_foreign(settings, kind, fields)
    # transformers 5 nests the RoPE settings; older folders have them at the top.
    name = "rope_parameters" if settings.get("rope_parameters") else "rope_scaling"
    rope = settings.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"config.json has {name} = {rope!r}, which should be an object")
    if name == "rope_parameters" and settings.get("rope_scaling") not in (None, {}, rope):
        raise ValueError("config.json has both rope_parameters and rope_scaling, and they differ: "
                         "remove the one that is wrong")
    settings["rope_theta"] = rope.get("rope_theta", settings["rope_theta"])
    settings["rope_scaling"] = _rope_scaling(rope)
    missing = sorted(fields - {"head_dim", "sliding_window", "rope_scaling"}
                     - {name for name, value in settings.items() if value is not None})
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    for field in dataclasses.fields(ModelConfig):
        _check_type(field, settings.get(field.name))
    return ModelConfig(**{name: settings.get(name) for name in fields})


def _refuse_foreign(settings, kind, fields):
    """Raise ValueError for a setting that could ask for what a Transformer does not do."""
    neutral = {**NEUTRAL, **({"sliding_window": None} if kind == "llama" else {})}
    for name, value in neutral.items():
        if settings.get(name, value) != value:
            raise ValueError(f"config.json has {name} = {settings[name]!r}, which this model "
                             "does not have")
    for name, value in settings.items():
        # What is off, or says where a file came from, asks for nothing.
        if value and name not in fields | set(NEUTRAL) | IGNORED and not name.startswith("_"):
            raise ValueError(f"config.json has an unknown field {name} = {value!r}: if it changes "
                             "nothing in the model, remove it")


def _rope_scaling(rope):
    """Return the RopeScaling of config.json's RoPE settings, None for none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    for name, value in rope.items():
        known = {"rope_type", "type", "rope_theta", *(names if kind == "llama3" else ())}
        if kind in ("default", "llama3") and name not in known and \
                (name, value) != ("partial_rotary_factor", 1.0):
            raise ValueError(f"config.json has {name} = {value!r} among its RoPE settings, which "
                             "this model does not have")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"config.json asks for RoPE scaling {kind!r}, which is not supported")
    missing = [name for name in names if name not in rope]
    if missing:
        raise ValueError(f"config.json's RoPE scaling lacks {', '.join(missing)}")
    return RopeScaling(**{name: rope[name] for name in names})


def _check_type(field, value):
    """Raise ValueError for a setting of a type that its field does not have."""
    kind = {"int": int, "float": (int, float), "bool": bool}.get(
        getattr(field.type, "__name__", str(field.type)).split(" ")[0])
    if kind and value is not None and (not isinstance(value, kind)
                                       or isinstance(value, bool) and kind is not bool):
        raise ValueError(f"config.json has {field.name} = {value!r}, which is not of type "
                         f"{getattr(field.type, '__name__', field.type)}")


def save_model(model, folder, tokenizer=None):
    """Write a Transformer as a folder that transformers opens, whole or not at all.

    tokenizer: the path of a tokenizer.json to go with it. A folder that stands there is replaced.
    """
    _write_folder(folder, lambda new: _write_model(model, new, tokenizer))


def _write_model(model, folder, tokenizer, weights=None):
    eot_id = None
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        eot_id = next((t["id"] for t in vocabulary["added_tokens"] if t["content"] == SPECIAL),
                      None)
        _write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL,
            "eos_token": SPECIAL, "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings})
    _write_json(folder / "config.json", to_hugging_face(model.config, eot_id))
    tensors = dict(model.state_dict() if weights is None else weights)
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # safetensors refuses two names for one memory
    _write_tensors(folder / "model.safetensors", tensors)


def load_model(folder, device="cpu"):
    """Open a checkpoint folder, ours or a Llama folder of others: a Transformer in fp32, eval mode.

    `folder` may also be a run, of which the newest intact checkpoint is taken. Raises ValueError
    that names the file for a damaged or foreign folder.
    """
    folder = find_checkpoint(folder)
    config = from_hugging_face(read_json(folder / "config.json"))
    tensors = {}
    for path in _weight_files(folder):
        tensors.update(_read_tensors(path))
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors.get("model.embed_tokens.weight")
    _check_shapes(_telling_shapes(config), tensors, folder)
    with torch.device("meta"):
        model = Transformer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check_shapes(expected, tensors, folder)
    # Old folders store RoPE's inverse frequencies, which the config already determines.
    extra = sorted(n for n in set(tensors) - set(expected) if not n.endswith("rotary_emb.inv_freq"))
    if extra:
        raise ValueError(f"{folder}: the weights hold {extra[0]}, which this model does not have")
    model.load_state_dict({n: tensors[n].float() for n in expected}, assign=True)
    if config.tie_word_embeddings:  # assigning put two parameters where one was
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(True).to(device).eval()


def _weight_files(folder):
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # a large model in several files
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise ValueError(f"{index} is damaged: it holds no weight_map")
        return sorted({folder / name for name in files.values()})
    return [folder / "model.safetensors"]


def _telling_shapes(config):
    """Return {name: shape} of a few weights: where they fit, a model that is as large can be built.

    A damaged config.json could ask for a billion layers, which would be built for hours.
    """
    layer, size = f"model.layers.{config.num_hidden_layers - 1}", config.head_size
    rows = {"model.embed_tokens": config.vocab_size,
            f"{layer}.self_attn.q_proj": config.num_attention_heads * size,
            f"{layer}.self_attn.k_proj": config.num_key_value_heads * size,
            f"{layer}.mlp.gate_proj": config.intermediate_size}
    return {f"{name}.weight": (count, config.hidden_size) for name, count in rows.items()}


def _check_shapes(expected, tensors, folder):
    for name, shape in expected.items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"{folder}: the weights lack {name}")
        if not found.is_floating_point():
            raise ValueError(f"{folder}: {name} holds {str(found.dtype)[6:]}: quantised weights "
                             "cannot be opened")
        if tuple(found.shape) != shape:
            raise ValueError(f"{folder}: {name} has shape {tuple(found.shape)}, "
                             f"but config.json asks for {shape}")


def save_checkpoint(run, step, model, tensors, state, tokenizer=None, keep=2, weights=None):
    """Write run/checkpoints/step-N: the model, the trainer's tensors and its state (JSON).

    Then remove all but the newest `keep` checkpoints and the best: that with the lowest "score"
    in its state, where there is one. weights: the model's tensors, where it does not hold them
    whole. Returns the folder.
    """
    folder = pathlib.Path(run) / "checkpoints" / f"step-{step:08d}"

    def write(new):
        _write_model(model, new, tokenizer, weights)
        _write_tensors(new / "trainer.safetensors", tensors)
        _write_json(new / "trainer.json", state)

    _write_folder(folder, write)
    # Later ones were damaged, and passed over when the run went on from an earlier one.
    known = [other for other in checkpoints(run) if other.name <= folder.name]
    best = min(known, key=_score)
    for old in known[:-keep]:
        if old != best or _score(old) == math.inf:
            _remove(old)
    return folder


def _score(folder):
    try:
        score = read_json(folder / "trainer.json").get("score")
    except ValueError:
        score = None
    return math.inf if score is None else score


def _remove(folder):
    """Delete a folder, which loses its name first: never does half of it look like a whole one."""
    away = tempfile.mkdtemp(prefix=".writing-", dir=folder.parent)
    os.replace(folder, away)
    shutil.rmtree(away, ignore_errors=True)


def load_checkpoint(folder):
    """Return (tensors, state) that save_checkpoint stored; load_model opens the weights."""
    folder = pathlib.Path(folder)
    return _read_tensors(folder / "trainer.safetensors"), read_json(folder / "trainer.json")


def checkpoints(run):
    """Return the checkpoint folders of a run, oldest first, intact or not."""
    # Only names that save_checkpoint gives: a reader's own copy beside them is none of ours.
    return sorted(path for path in (pathlib.Path(run) / "checkpoints").glob("step-*")
                  if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def newest_intact(run, say=print):
    """Return the newest undamaged checkpoint folder of a run, or None; name the damaged ones."""
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
            return folder
        except ValueError as error:
            say(f"passed over a damaged checkpoint: {error}")
    return None


def find_checkpoint(folder):
    """Return `folder` if it holds a model, else the newest intact checkpoint of the run there.

    Raises ValueError when there is neither, or when one of our own folders is damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        found = newest_intact(folder)
        if found is None and (folder / "log.jsonl").is_file():
            raise ValueError(f"{folder} has no intact checkpoint yet: let it train on")
        if found is None:
            raise ValueError(f"{folder} holds no model (config.json) and no intact checkpoint: "
                             "name a run or a checkpoint folder")
        return found
    if (folder / "checksums.json").is_file():
        verify(folder)
    return folder


def verify(folder):
    """Raise ValueError naming the first file of a checkpoint that is missing or altered."""
    folder = pathlib.Path(folder)
    known = read_json(folder / "checksums.json")
    for name in ("config.json", "model.safetensors", *(p.name for p in folder.glob("trainer.*"))):
        if name not in known:
            raise ValueError(f"{folder / 'checksums.json'} is damaged: it does not list {name}")
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if _sha256(path) != digest:
            raise ValueError(f"{path} is damaged (its sha256 differs from checksums.json)")


def _write_folder(folder, write):
    """Let `write(new)` fill a temporary folder, add checksums, sync, and rename it into place."""
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A run killed while it saved left its temporary folder behind.
    for stale in folder.parent.glob(".writing-*"):
        shutil.rmtree(stale, ignore_errors=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        write(new)
        _write_json(new / "checksums.json",
                    {path.name: _sha256(path) for path in sorted(new.iterdir())})
        for path in new.iterdir():
            _sync(path)
        os.chmod(new, 0o755)  # mkdtemp's folders are private
        if folder.exists():
            _remove(folder)
        os.replace(new, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path):
    """Wait until a file, or a folder's list of names, has reached the disk."""
    if os.name == "nt" and pathlib.Path(path).is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def read_json(path):
    """Return the object of a JSON file; raise ValueError where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return found


def _write_tensors(path, tensors):
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path,
                  metadata={"format": "pt"})
    except SafetensorError as error:  # as it calls a full disk
        raise OSError(f"{path} could not be written: {error}") from None


def _read_tensors(path):
    if not path.is_file():
        raise ValueError(f"{path} is missing (weights must be safetensors; a pickle, such as "
                         "pytorch_model.bin, could run a stranger's code and is not opened)")
    try:
        with safe_open(path, "pt"):
            pass
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None


# --- A run's folder ----------------------------------------------------------------------------

def lock(folder):
    """Return the open lock file of a run; it frees itself when the process ends, however it ends.

    Raises ValueError when another process trains there.
    """
    file = (pathlib.Path(folder) / ".lock").open("w")
    try:
        import fcntl  # not on Windows
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a disk that knows no locks
            raise ValueError(f"another process trains in {folder}: wait for it, or give another "
                             "--out") from None
    return file


def write_whole(path, text):
    """Write a file under another name and rename it: it is never there in part."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text(text, encoding="utf-8")
    os.replace(writing, path)


def read_log(run, step):
    """Return the rows of a run's log.jsonl up to `step`, but for a line that a crash cut off."""
    path, rows = pathlib.Path(run) / "log.jsonl", []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["step"] <= step:
                    rows.append(row)
    return rows
