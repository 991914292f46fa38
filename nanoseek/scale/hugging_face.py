"""config.json as transformers' Llama and Mistral have it, to and from a ModelConfig.

    settings = to_hugging_face(ModelConfig())         # what is written as config.json
    config = from_hugging_face(settings)              # also of a folder that others published

ModelConfig has transformers' field names, so most of this is refusing: a setting that asks for what
a Transformer does not do must not be passed over, or the model would open and be wrong."""

import dataclasses

from nanoseek.deepseek.hugging_face import ARCHITECTURES as PARTS, adopt, settings_of, take_parts
from nanoseek.model import ModelConfig, RopeScaling

# By config.json's model_type. transformers' Llama ignores a sliding window, its Mistral has one.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
                 **PARTS}
# Settings that change nothing in the model, whatever they say,
IGNORED = """architectures model_type rope_parameters type transformers_version torch_dtype dtype
use_cache pretraining_tp attention_dropout return_dict id2label label2id chunk_size_feed_forward
bos_token_id eos_token_id pad_token_id unk_token_id max_length auto_map is_llama_config
unsloth_version transformers.js_config tokenizer_class do_sample temperature top_k top_p""".split()
# and those that may be there with these values only.
FIXED = {"hidden_act": ["silu"], "partial_rotary_factor": [1.0], "rope_type": ["default", "llama3"]}


def to_hugging_face(config, eot_id=None):
    """Return the config.json (a dict) of transformers' Llama, or Mistral, for a ModelConfig."""
    uneven = config.hidden_size % config.num_attention_heads  # which its Llama refuses
    kind, fields = settings_of(config)
    kind = kind or ("mistral" if config.sliding_window or uneven else "llama")
    if fields["rope_scaling"]:
        fields["rope_scaling"] = {"rope_type": "llama3", **fields["rope_scaling"]}
    if kind != "mistral" and config.sliding_window is None:
        del fields["sliding_window"]
    return {"architectures": [ARCHITECTURES[kind]], "model_type": kind,
            **fields, "head_dim": config.head_size, "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
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
    usual = {"num_key_value_heads": settings.get("num_attention_heads"), "rope_theta": 10000.0,
             "tie_word_embeddings": False, "rope_type": rope.get("type", "default"),
             "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "initializer_range": 0.02}
    if kind == "mistral":
        usual |= dict(sliding_window=4096, num_key_value_heads=8, max_position_embeddings=131072)
    given = {name: value for name, value in settings.items()  # null: as if left out, or
             if value is not None or name in ("sliding_window", "q_lora_rank")}  # turned off
    settings = usual | given | rope | {"rope_scaling": None}
    settings |= take_parts(kind, settings)
    if settings["rope_type"] == "llama3":
        settings["rope_scaling"] = _take(RopeScaling, settings)
    config = _take(ModelConfig, settings)
    if kind == "llama":
        settings["sliding_window"] = config.sliding_window  # which it does not have
    for name, value in settings.items():
        # What is off asks for nothing; "_name_or_path" and the like say where a file came from.
        harmless = value in FIXED[name] if name in FIXED else not value
        if not harmless and name not in IGNORED and not name.startswith("_"):
            raise ValueError(f"config.json has {name} = {value!r}, which this model does not have: "
                             "if it changes nothing in the model, remove it")
    return config


def _take(dataclass, settings):
    """Return a dataclass made of the settings of its fields' names, which are taken out."""
    found = {name: settings.pop(name, None) for name in dataclass.__annotations__}
    for name, kind in dataclass.__annotations__.items():
        # A whole number may stand for a float; True, to Python also a whole number, may not.
        if not isinstance(found[name], kind | int if kind is float else kind) or \
                isinstance(found[name], bool) != (kind is bool):
            raise ValueError(f"config.json has {name} = {found[name]!r}, not of type {kind}")
    return dataclass(**found)
