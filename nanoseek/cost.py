"""Count what a model costs: parameters, FLOPs, bytes, hours, dollars, kWh.

    cost(config, tokens=2e12, gpu="H800")["dollars"]                       # on rented GPUs
    price_tag(config, 8e6, seconds=120, ceiling=measure_ceiling(), context=256)  # of a run here

A config is any object or dict with the fields of Hugging Face's Llama; num_key_value_heads,
head_dim, tie_word_embeddings (False unless given, as there) and sliding_window are optional. Where
its "attention" or "feed_forward" is a part of nanoseek/deepseek, that counts its own weights.

One convention for FLOPs, everywhere in nanoseek (PaLM, arXiv 2204.02311, appendix B): training
costs 6 × (parameters in matrix products, the output head among them) + 12·L·d·s per token, where
L is layers, d = heads × head_dim the width of attention, s the length of a row; attention is
counted in full although half of it is masked. The forward pass is a third of that.

Glossary: FLOP one multiplication or addition; ceiling the FLOP/s of one large matrix product,
measured here, or a chip's published peak; MFU model FLOPs utilisation, the share of the ceiling
that model FLOPs reach; PUE power of the whole building over the power of its computers."""

import json
import math
import numbers
import pathlib
import time

CONVENTION = "6 x matmul parameters + 12 L d s a token, attention in full, no recomputation"
ASSUMED = {  # of a machine at home, where nobody measured: (value, source)
    "watts": (50.0, "assumption: a laptop under full load; a wall meter knows better"),
    "dollars_per_kwh": (0.20, "assumption: a household's price"),
    "dollars_per_hour": (0.10, "assumption: rent of a small cloud machine"),
    "pue": (1.0, "assumption: no cooling to pay for at home")}
MEMORY_CHOICES = {"checkpointing": ("none", "selective", "full"),
                  "precision": ("fp32", "bf16", "fp16"), "optimizer": ("adamw", "muon")}


def _get(config, name, default=None):
    value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return default if value is None else value


def positive(name, value, kind=numbers.Real):
    """Return a finite number above 0; raise ValueError, with its name, for anything else."""
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        what = "whole number" if kind is numbers.Integral else "number"
        raise ValueError(f"{name} is {value!r}: it must be a finite {what} above 0")
    return value


def _field(config, name, default=None):
    return positive(name, _get(config, name, default), kind=numbers.Integral)


def _widths(config, seen=1):
    """Return the width of all heads' queries, and that of the keys, which is that of the values."""
    heads = _field(config, "num_attention_heads")
    if part := _get(config, "attention"):
        return part.widths(heads, seen)
    size = _field(config, "head_dim", _field(config, "hidden_size") // heads)
    return heads * size, _field(config, "num_key_value_heads", heads) * size


def _seen(config, context):
    """Return how many positions attention pays for: the row's, or a window's in every layer."""
    if _get(config, "sliding_window") is None or not _get(config, "use_sliding_window", True) \
            or _get(config, "sliding_window_pattern") or "full_attention" in _get(
                config, "layer_types", ()):
        return context
    return min(context, _field(config, "sliding_window"))


def parameters(config):
    """Count parameters by part. The head has none of its own when it is tied to the embedding;
    "idle" are the experts that a token does not visit; "matmul" are those that every token is
    multiplied with, the head's among them, tied or not."""
    names = config if isinstance(config, dict) else dir(config)
    if not _get(config, "feed_forward") and any(
            "expert" in name and _get(config, name) not in (None, 0, 1) for name in names):
        raise ValueError("this config is a mixture of experts of a kind that we cannot count")
    more = _get(_get(config, "prediction", {}), "num_nextn_predict_layers", 0)  # predict.py's
    layers, hidden = _field(config, "num_hidden_layers") + more, _field(config, "hidden_size")
    embedding = _field(config, "vocab_size") * hidden
    mlp = _field(config, "mlp_matrices", 3) * hidden * _field(config, "intermediate_size")
    latent, experts = _get(config, "attention"), _get(config, "feed_forward")
    attention, norms = (latent.count(hidden, _field(config, "num_attention_heads")) if latent
                        else (2 * hidden * sum(_widths(config)), 0))
    mlps, idle = experts.count(hidden, layers, mlp) if experts else (layers * mlp, 0)
    mlps += more * 2 * hidden ** 2  # eh_proj
    parts = {"embedding": embedding, "attention": layers * attention, "mlp": mlps,
             "norms": layers * (2 * hidden + norms) + (1 + 3 * more) * hidden,
             "head": 0 if _get(config, "tie_word_embeddings", False) else embedding}
    return {**parts, "total": sum(parts.values()), "idle": idle,
            "matmul": parts["attention"] + mlps - idle + (1 + more) * embedding}


def flops_per_token(config, context):
    """Count the FLOPs of training per token by part; full activation checkpointing adds to "total"
    its "recomputation". context: length of a row; of several lengths, their mean over tokens."""
    more = _get(_get(config, "prediction", {}), "num_nextn_predict_layers", 0)
    layers, seen = _field(config, "num_hidden_layers"), _seen(config, positive("context", context))
    attention = 12 * (layers + more) * _widths(config, seen)[0] * seen
    head = 6 * (1 + more) * _field(config, "vocab_size") * _field(config, "hidden_size")
    matrices = 6 * parameters(config)["matmul"] - head
    total = matrices + attention + head
    return {"matrices": matrices, "attention": attention, "head": head, "total": total,
            "forward": total / 3, "backward": total * 2 / 3,
            "recomputation": (matrices + attention) / 3}


def _layer_activations(config, each, windowed):
    """Return the bytes per token that autograd keeps in one layer, and those of its products."""
    if any(_get(config, part) for part in ("attention", "feed_forward", "prediction")):
        return 0, 0  # of parts of nanoseek/deepseek they are not counted
    hidden, (queries, keys) = _field(config, "hidden_size"), _widths(config)
    mlp, heads = _field(config, "intermediate_size"), _field(config, "num_attention_heads")
    # A norm keeps its input, a scale and the normalised input, in fp32. The products that read its
    # result share it in fp32; autocast makes a copy for each of the five.
    norms = 2 * 4 * (2 * hidden + 1) + hidden * each * (2 if each == 4 else 5)
    # Queries, output, keys and values (three copies where a window reaches two blocks back), and
    # a log-sum-exp for each head; of the MLP gate, silu(gate), up and their product.
    attention = 2 * (queries + (3 if windowed else 1) * keys) * each + 4 * heads
    return norms + attention + 4 * mlp * each, each * (queries + 2 * (keys + hidden + mlp))


def memory(config, batch, context, checkpointing="none", precision="fp32", optimizer="adamw",
           document_mask=False):
    """Count the bytes to train on `batch` rows of `context` tokens at once. checkpointing:
    "selective" keeps the results of matrix products, "full" each layer's input; "working" is then
    one layer recomputed. precision: "fp32", or autocast over fp32 weights with its "weight_copies".
    optimizer: "adamw" (two moments) or "muon" (one for the layers' matrices). Left out are the
    logits, which fast/ makes in parts, and from "total" the "kv_cache" for as many tokens."""
    for name, choice in zip(MEMORY_CHOICES, (checkpointing, precision, optimizer)):
        if choice not in MEMORY_CHOICES[name]:
            raise ValueError(f"unknown {name} {choice!r}: choose {', '.join(MEMORY_CHOICES[name])}")
    tokens = positive("batch", batch) * positive("context", context)
    count, each = parameters(config), 4 if precision == "fp32" else 2  # bytes in a product
    layers, hidden = _field(config, "num_hidden_layers"), _field(config, "hidden_size")
    matrices, seen = count["attention"] + count["mlp"], _seen(config, context)
    layer, products = _layer_activations(config, each, seen < context)
    if not layer and checkpointing != "full":
        raise ValueError("what a layer with these parts keeps is not counted: checkpointing full")
    kept = {"none": layer, "selective": 4 * hidden + products, "full": 4 * hidden}[checkpointing]
    # One mask serves all layers. That of a window spans three blocks, each half the window.
    mask = int(1.5 * seen) if seen < context else context if document_mask else 0
    # Above the layers: the last norm, and the loss's gradients for its input and for the head.
    end = tokens * (4 * (3 * hidden + 1) + mask * each) + 4 * count["embedding"]
    parts = {"weights": 4 * count["total"], "gradients": 4 * count["total"],
             "optimizer": 8 * count["total"] - (4 * matrices if optimizer == "muon" else 0),
             "weight_copies": each * matrices if each < 4 else 0,
             "activations": tokens * layers * kept + end,
             "working": 0 if checkpointing == "none" else tokens * layer}
    return {**parts, "total": sum(parts.values()),
            "kv_cache": int(2 * layers * _widths(config)[1] * each * batch * seen)}


def measure_ceiling(seconds=1.0, device="cpu", dtype=None):
    """Return the best FLOP/s of a large square matrix product. dtype: a name such as "float32"."""
    import torch
    kind = torch.device(device).type
    size = 2048 if kind == "cpu" else 8192
    dtype = getattr(torch, dtype or ("bfloat16" if kind == "cuda" else "float32"))
    matrix = torch.randn(size, size, device=device).to(dtype)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:  # the first only warms up
        began = time.perf_counter()
        matrix @ matrix
        getattr(torch, kind).synchronize()  # a GPU returns before it has computed
        times.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(times[1:])


def _stated(known, given):
    """Return {name: {"value", "source"}} of all in `known`, with what was given in its place."""
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"unknown assumption {unknown[0]!r}: choose {', '.join(known)}")
    stated = known | {name: (positive(name, value), "given") for name, value in given.items()}
    return {name: {"value": value, "source": source} for name, (value, source) in stated.items()}


def _spent(hours, rent_name, assumed):
    """Return what some hours of a machine take, the dollars of its rent under the name given."""
    kwh = hours * assumed["watts"]["value"] / 1000 * assumed["pue"]["value"]
    return {"kwh": kwh, "dollars_electricity": kwh * assumed["dollars_per_kwh"]["value"],
            rent_name: hours * assumed["dollars_per_hour"]["value"],
            "convention": CONVENTION, "assumptions": assumed}


def price_tag(config, tokens, seconds, ceiling, context, peak_bytes=None, **given):
    """Return the bill of a run that was measured. ceiling: in FLOP/s; context: the length of its
    rows, where they differ their mean weighted by tokens; given: values that replace ASSUMED."""
    speed = positive("tokens", tokens) / positive("seconds", seconds)
    count, each = parameters(config), flops_per_token(config, context)["total"]
    return {"parameters": count["total"], "matmul_parameters": count["matmul"],
            "context": context, "tokens": tokens, "flops_per_token": each, "flops": each * tokens,
            "seconds": seconds, "flops_per_second": each * speed,
            "ceiling": positive("ceiling", ceiling), "mfu": each * speed / ceiling,
            **({} if peak_bytes is None else {"peak_bytes": peak_bytes}),
            **_spent(seconds / 3600, "dollars_rent", _stated(ASSUMED, given))}


def tables():
    """Read cost_tables.json: chips, the usual on them, published bills, claims, with sources."""
    return json.loads(pathlib.Path(__file__).with_name("cost_tables.json").read_text("utf-8"))


def rent(flops, gpu=None, **given):
    """Return the bill of computing `flops` on rented GPUs, empty without one. given: values for
    ASSUMED and "mfu", in place of what the tables say; None is ignored."""
    given = {name: value for name, value in given.items() if value is not None}
    if gpu is None:
        if given:
            raise ValueError(f"{', '.join(given)} would change nothing: give gpu as well")
        return {}
    known = tables()
    if gpu not in known["hardware"]:
        raise ValueError(f"unknown GPU {gpu!r}: choose {', '.join(known['hardware'])}")
    chip, usual = known["hardware"][gpu], known["usual_mfu"]
    of_chip = {name: (chip[name], f"{gpu}: {chip['source']}") for name in ASSUMED if name in chip}
    assumed = _stated({**known["rented"], **of_chip, "mfu": usual.get(gpu, usual["other"])}, given)
    if missing := [name for name, entry in assumed.items() if entry["value"] is None]:
        raise ValueError(f"{gpu} has no known {missing[0]}: give it")
    peak, mfu = chip["tflops"] * 1e12, assumed["mfu"]["value"]
    if mfu > 1:
        raise ValueError(f"mfu is {mfu}: it is a share of the peak, so at most 1")
    hours = flops / (peak * mfu) / 3600
    return {"gpu": gpu, "ceiling": peak, "mfu": mfu, "gpu_hours": hours,
            **_spent(hours, "dollars", assumed)}


def cost(config, context=None, tokens=None, gpu=None, **given):
    """Price a config: "flops_per_token", "parameters", "memory" of a row in bf16; with tokens the
    "flops" of training on them; with a gpu also "gpu_hours", "dollars", "kwh". context: length of
    a row (max_position_embeddings unless given). given: see `rent`."""
    context = _field(config, "max_position_embeddings") if context is None else context
    each = flops_per_token(config, context)
    result = {"context": context, "flops_per_token": each, "parameters": parameters(config)}
    modes = MEMORY_CHOICES["checkpointing"] if _layer_activations(config, 2, 0)[0] else ("full",)
    result["memory"] = {mode: memory(config, 1, context, mode, "bf16") for mode in modes}
    if tokens is not None or gpu is not None:  # the bill of a GPU needs their number
        result.update(tokens=tokens, flops=each["total"] * positive("tokens", tokens))
    return {**result, **rent(result.get("flops"), gpu, **given)}


def main():
    from nanoseek.cli import hand_over, run
    run(lambda: hand_over("nanoseek.lab.bill", None))


if __name__ == "__main__":
    main()
