"""config.json as transformers' Llama and Mistral have it, to and from a ModelConfig.

    settings = to_hugging_face(ModelConfig())         # what is written as config.json
    config = from_hugging_face(settings)              # also of a folder that others published

ModelConfig has transformers' field names, so most of this is refusing: a setting that could ask
for what a Transformer does not do must not be passed over, or the model would open and be wrong.
"""

import dataclasses

from nanoseek.model import ModelConfig, RopeScaling

# The architectures that a Transformer can be, by config.json's model_type. transformers' Llama
# would ignore a sliding window, so a model that has one is its Mistral, otherwise the same.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# Settings that change nothing in the model, whatever they say,
IGNORED = {"architectures", "model_type", "rope_parameters", "transformers_version", "torch_dtype",
           "dtype", "use_cache", "pretraining_tp", "attention_dropout", "return_dict", "id2label",
           "label2id", "chunk_size_feed_forward", "bos_token_id", "eos_token_id", "pad_token_id",
           "unk_token_id", "max_length", "auto_map"}
# and those that change nothing as long as they say this.
NEUTRAL = {"hidden_act": "silu", "partial_rotary_factor": 1.0}


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
    if kind not in list(ARCHITECTURES):
        raise ValueError(f"config.json describes a {kind!r} model: only Llama-family folders "
                         f"(model_type {' or '.join(ARCHITECTURES)}) can be opened")
    # transformers 5 nests the RoPE settings in rope_parameters; older folders have rope_scaling.
    nested, older = settings.get("rope_parameters"), settings.get("rope_scaling")
    rope = nested or older or {}
    if not isinstance(rope, dict) or nested and older not in (None, {}, nested):
        raise ValueError(f"config.json has rope_parameters = {nested!r}, rope_scaling = {older!r}: "
                         "remove the one that is wrong; the other should be an object")
    # What transformers fills in where a config.json leaves it out.
    usual = {"rope_theta": 10000.0, "tie_word_embeddings": False,
             "num_key_value_heads": settings.get("num_attention_heads")}
    if kind == "mistral":
        usual |= {"sliding_window": 4096, "num_key_value_heads": 8}
    settings = usual | settings | {"rope_scaling": _rope_scaling(rope)}
    settings["rope_theta"] = rope.get("rope_theta", settings["rope_theta"])
    known = IGNORED | {field.name for field in dataclasses.fields(ModelConfig)}
    _refuse_unknown(settings, known - {"sliding_window"} if kind == "llama" else known)
    return _from_fields(ModelConfig, settings)


def _rope_scaling(rope):
    """Return the RopeScaling of config.json's RoPE settings, None for none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json asks for RoPE scaling {kind!r}, which is not supported")
    fields = {field.name for field in dataclasses.fields(RopeScaling) if kind == "llama3"}
    _refuse_unknown(rope, {"rope_type", "type", "rope_theta"} | fields)
    return _from_fields(RopeScaling, rope) if kind == "llama3" else None


def _refuse_unknown(settings, known):
    """Raise ValueError for a setting that could ask for what a Transformer does not do."""
    for name, value in settings.items():
        # What is off asks for nothing; "_name_or_path" and the like say where a file came from.
        harmless = value == NEUTRAL[name] if name in NEUTRAL else not value
        if not harmless and name not in known and not name.startswith("_"):
            raise ValueError(f"config.json has {name} = {value!r}, which this model does not have: "
                             "if it changes nothing in the model, remove it")


def _from_fields(dataclass, settings):
    """Return a dataclass made of the settings that have its fields' names."""
    found = {field.name: settings.get(field.name) for field in dataclasses.fields(dataclass)}
    for field in dataclasses.fields(dataclass):
        kind, value = field.type, found[field.name]
        # A whole number may stand for a float; True, to Python also a whole number, may not.
        if not isinstance(value, kind | int if kind is float else kind) or \
                isinstance(value, bool) != (kind is bool):
            raise ValueError(f"config.json has {field.name} = {value!r}, which is not of type "
                             f"{getattr(kind, '__name__', kind)}")
    return dataclass(**found)
