"""The parts of this room in the words of a config.json: transformers' DeepSeek-V2, V3 and V3.2.

    kind, settings = settings_of(config)     # "deepseek_v3", {"hidden_size": …, "kv_lora_rank": …}
    parts = take_parts(kind, settings)       # {"attention": Latent(…), "feed_forward": …, …}
    config, tensors = adopt(config, tensors) # the weights of a folder, as a Transformer takes them

With both parts, or with latent attention alone, a model is a DeepSeek-V3 (or a V2, by its router)
to transformers; with sparse attention a DeepSeek-V3.2. Experts without latent attention are no
model that it has: a kind of our own. Modules that predict more tokens may stand behind the layers
of any kind.
"""

import dataclasses
import re

import torch

from nanoseek.deepseek.experts import Experts
from nanoseek.deepseek.latent import Latent
from nanoseek.deepseek.predict import MultiToken
from nanoseek.deepseek.sparse import Sparse

ARCHITECTURES = {"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
                 "deepseek_v32": "DeepseekV32ForCausalLM", "nanoseek_experts": None}
METHODS = {True: "group_limited_greedy", False: "greedy"}  # how V2's router chooses: in groups?
# What transformers fills in where a config.json leaves it out.
USUAL = {"deepseek_v2": {"scoring_func": "softmax", "first_k_dense_replace": 0, "n_group": None,
                         "topk_group": None, "n_shared_experts": 2, "norm_topk_prob": False,
                         "routed_scaling_factor": 1.0, "topk_method": "greedy"},
         "deepseek_v3": {"scoring_func": "sigmoid", "first_k_dense_replace": 3, "n_group": 8,
                         "topk_group": 4, "n_shared_experts": 1, "norm_topk_prob": True,
                         "routed_scaling_factor": 2.5, "num_experts_per_tok": 8,
                         "moe_intermediate_size": 2048, "n_routed_experts": 256},
         "nanoseek_experts": {}}
USUAL["deepseek_v32"] = USUAL["deepseek_v3"] | {"index_n_heads": 64, "index_head_dim": 128,
                                                "index_topk": 2048}
LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
          "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_interleave": True}
# Settings that change nothing here, or that the parts determine.
IGNORED = ["qk_head_dim", "moe_layer_freq", "ep_size", "num_nextn_predict_layers", "seq_aux",
           "aux_loss_alpha", "output_router_logits", "topk_method", "num_mtp_layers",
           "layer_types"]
# What a module that predicts shares with the model; DeepSeek's files hold it once more for each.
SHARED = {"embed_tokens.weight": "model.embed_tokens.weight",
          "shared_head.head.weight": "lm_head.weight"}


def settings_of(config):
    """Return (model_type, fields) of a ModelConfig for a config.json, the parts' fields among the
    others; None in place of the type where it has no parts."""
    latent, experts, fields = config.attention, config.feed_forward, dataclasses.asdict(config)
    del fields["attention"], fields["feed_forward"]
    fields |= fields.pop("prediction") or {}
    if latent is None and experts is None:
        return None, fields
    softmax = experts is not None and experts.scoring_func == "softmax"
    sparse = isinstance(latent, Sparse)
    if sparse and softmax:
        raise ValueError("sparse attention goes with scoring_func sigmoid only, as in V3.2")
    kind = ("nanoseek_experts" if latent is None else "deepseek_v2" if softmax
            else "deepseek_v32" if sparse else "deepseek_v3")
    # Without experts: a V3 whose layers are all among the first dense ones.
    layers = config.num_hidden_layers + fields.get("num_nextn_predict_layers", 0)
    experts = experts or Experts(first_k_dense_replace=layers)
    settings = fields | (dataclasses.asdict(latent) if latent else {})
    settings |= dataclasses.asdict(experts)
    settings.setdefault("num_nextn_predict_layers", 0)
    if kind == "deepseek_v2":
        settings["topk_method"] = METHODS[experts.n_group > 1]
        if not latent.rope_interleave:
            raise ValueError("a DeepSeek-V2 has rope_interleave: true, or it cannot be saved")
    if latent is not None:
        settings["num_key_value_heads"] = config.num_attention_heads  # all have keys of their own
    return kind, settings


def take_parts(kind, settings):
    """Take the parts' settings out of those of a config.json; return {"attention", "feed_forward",
    "prediction"}, the last alone for other kinds. ValueError for what they cannot represent."""
    depth, layers = (settings.get(name) for name in ("num_nextn_predict_layers",
                                                     "num_hidden_layers"))
    prediction = _take(MultiToken, settings) if depth else None
    if kind not in [*ARCHITECTURES]:  # a list: from a stranger's file, it may be anything
        return {"prediction": prediction}
    if type(layers) is not int:
        raise ValueError(f"config.json has num_hidden_layers = {layers!r}, not a whole number")
    settings |= {name: value for name, value in (USUAL[kind] | LATENT).items()
                 if settings.get(name) is None and (name != "q_lora_rank" or name not in settings)}
    if settings.get("moe_layer_freq") not in (None, 1):
        raise ValueError("config.json has a moe_layer_freq other than 1: a dense layer between "
                         "mixtures cannot be represented")
    if kind == "deepseek_v2":
        method = settings.get("topk_method")
        if method not in METHODS.values():
            raise ValueError(f"config.json has topk_method = {method!r}: of V2's routers we have "
                             f"{' and '.join(METHODS.values())}")
        if method == "greedy":
            settings |= {"n_group": 1, "topk_group": 1}
        settings["norm_topk_prob"] = False  # which transformers' V2 ignores, as does DeepSeek's
    if kinds := settings.pop("mlp_layer_types", None):  # V3.2 names the kind of each layer's MLP
        dense = kinds.count("dense") if isinstance(kinds, list) else 0
        settings["first_k_dense_replace"] = dense
        if kinds != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise ValueError("config.json has mlp_layer_types other than dense layers, then "
                             "mixtures, which cannot be represented")
    for name in IGNORED:
        settings.pop(name, None)
    attention = Sparse if kind == "deepseek_v32" else Latent
    parts = {"attention": _take(attention, settings), "feed_forward": _take(Experts, settings),
             "prediction": prediction}
    if kind == "nanoseek_experts":
        parts["attention"] = None
    if parts["feed_forward"].first_k_dense_replace >= layers + (depth or 0):
        parts["feed_forward"] = None
    return parts


def adopt(config, tensors):
    """Return (config, tensors) of a folder of others as a Transformer takes them, without what it
    does not hold; and without prediction where the folder, as transformers saves one, names modules
    but does not have them. ValueError for a module with an embedding or a head of its own."""
    kept = {}
    for name, tensor in tensors.items():
        shared = SHARED.get(re.sub(r"model\.layers\.\d+\.", "", name))
        if shared not in tensors and shared == "lm_head.weight":  # tied
            shared = "model.embed_tokens.weight"
        if shared and not torch.equal(tensor, tensors.get(shared, tensor)):
            raise ValueError(f"{name} differs from {shared}, which it should share")
        # Old folders store RoPE's inverse frequencies, which the config already determines.
        if not shared and not name.endswith("rotary_emb.inv_freq"):
            kept[name] = tensor
    if f"model.layers.{config.num_hidden_layers}.eh_proj.weight" not in kept:
        config = dataclasses.replace(config, prediction=None)
    return config, kept


def countable(settings):
    """Return the settings of a config.json as cost.py counts them, with the parts made of them."""
    left = settings | {"attention": None, "feed_forward": None, "prediction": None}
    return left | take_parts(settings.get("model_type"), left)


def _take(dataclass, settings):
    """Return a dataclass made of the settings of its fields' names, which are taken out."""
    return dataclass(**{field.name: settings.pop(field.name)
                        for field in dataclasses.fields(dataclass) if field.name in settings})
