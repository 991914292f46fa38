"""Count what a model costs: parameters, FLOPs, bytes, hours, dollars, kWh; and plan a budget.

    tag = price_tag(config, tokens=8e6, seconds=120, ceiling=measure_ceiling())
    print(format_price_tag(tag))                           # the bill of a run on this machine
    cost(config, tokens=2e12, gpu="H800")["dollars"]       # the bill of a run on rented GPUs
    plan(dollars=100, gpu="H100")["config"]                # the model that a budget should train

A config is any object or dict with the fields of Hugging Face's Llama: hidden_size,
num_hidden_layers, num_attention_heads, intermediate_size, vocab_size; where they differ from the
usual num_key_value_heads, head_dim, tie_word_embeddings (False unless given, as there).

One convention for FLOPs, everywhere in nanoseek: training costs 6 × (parameters in matrix
products, the output head among them) + 12·L·d·s per token, where L is layers, d = H·D the width
of attention, s the length of a row; attention is counted in full although half of it is masked.
The forward pass is a third. Work done twice (activation checkpointing) is counted apart.

Sources: PaLM (arXiv 2204.02311, appendix B) for model FLOPs and MFU; DeepSeek LLM (2401.02954,
§3) for the scaling laws. Marks of published figures: V read in the primary source, 2 second-hand,
D derived from V.

Glossary: FLOP one multiplication or addition; ceiling the FLOP/s of one large matrix product,
measured here, or a chip's published peak; MFU model FLOPs utilisation, the share of the ceiling
that model FLOPs reach; PUE power of the whole building over the power of its computers.
Shapes: C hidden_size, H heads, K key-value heads, D head_dim, V vocab_size.
"""

import dataclasses
import json
import math
import numbers
import os
import statistics
import sys
import time

CONVENTION = "6 x matmul parameters + 12 L d s a token, attention in full, no recomputation"


# --- What a bill rests on -----------------------------------------------------------------------

def _assumed(value, source):
    return dataclasses.field(default=value, metadata={"help": source})


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a bill assumes where nobody measured, for a laptop; sources in the fields' metadata."""

    watts: float = _assumed(50.0, "assumption: a laptop under full load; a wall meter knows better")
    dollars_per_kwh: float = _assumed(0.20, "assumption: a household's price")
    dollars_per_hour: float = _assumed(0.10, "assumption: rent of a small cloud machine")
    pue: float = _assumed(1.0, "a machine at home has no building around it")


RENTED = {  # the same in a datacentre; watts and dollars_per_hour come from the chip
    "dollars_per_kwh": (0.08, "assumption: an industrial price"),
    "pue": (1.3, "assumption, between large operators' 1.1 (2) and the industry's 1.58 in 2023 (V, "
                 "Uptime Institute)")}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Dense peak of matrix products in TFLOP/s, power limit, rent, memory. None: no figure that
    we could trust."""

    tflops: float
    watts: float | None
    dollars_per_hour: float | None
    memory_gb: float | None
    source: str
    precision: str = "BF16"


HARDWARE = {
    "A100": Chip(312, 400, 1.75, 80, "peak, W V (NVIDIA), GB V (Llama 2 card), $ V (llm.c)"),
    "H100": Chip(989, 700, 3.00, 80, "SXM: peak, W, GB 2; $ V (nanochat; llm.c paid 3.50)"),
    "H200": Chip(989, None, None, 141, "peak V (NVIDIA), GB 2"),
    "H800": Chip(989, 700, 2.00, 80, "as H100 but NVLink 400 instead of 900 GB/s and little FP64 "
                                     "(2); $ V (DeepSeek-V3 report)"),
    "H20": Chip(148, None, None, None, "peak 2"),
    "RTX 4090": Chip(165, 450, None, 24, "2"),
    "RTX 3090": Chip(71, None, None, 24, "peak V (NVIDIA), GB 2"),
    "T4": Chip(65, 70, None, 16, "2; it has no BF16", "FP16"),
    **{name: Chip(tflops, None, None, None, "2; M2 and M3 with 10 GPU cores", "FP32")
       for name, tflops in (("M2", 3.6), ("M3", 3.6), ("M1 Max", 10.4), ("M2 Max", 13.6),
                            ("M3 Max", 16.4))}}


def _llama(layers, hidden, heads, kv_heads, intermediate, vocab):
    return {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": intermediate,
            "vocab_size": vocab}


def _gpt(layers, hidden, heads, vocab):
    """GPT-2's kind: two matrices in the MLP instead of SwiGLU's three, head and embedding tied."""
    return {**_llama(layers, hidden, heads, heads, 4 * hidden, vocab), "mlp_matrices": 2,
            "tie_word_embeddings": True}


def _latent(layers, heads):
    """DeepSeek-V2's and V3's attention: 192 wide for scores, 128 for values, so 160 on average."""
    return {"num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": 160}


@dataclasses.dataclass(frozen=True)
class Bill:
    """A published training bill; `scope` is what its GPU-hours cover, and where they stand."""

    model: str
    config: dict
    context: int
    tokens: float
    chip: str | None
    gpu_hours: float | None
    scope: str
    active_parameters: float | None = None  # of a mixture of experts
    published_flops: float | None = None  # these leave attention out


_CARD, _NOT_ONE = "all, model card (V)", "not one clean run, model card (V)"
BILLS = tuple(Bill(*row) for row in (
    ("Llama 2 7B", _llama(32, 4096, 32, 32, 11008, 32000), 4096, 2e12, "A100", 184_320, _CARD),
    ("Llama 2 13B", _llama(40, 5120, 40, 40, 13824, 32000), 4096, 2e12, "A100", 368_640, _CARD),
    ("Llama 2 70B", _llama(80, 8192, 64, 8, 28672, 32000), 4096, 2e12, "A100", 1_720_320, _CARD),
    ("TinyLlama 1.1B", _llama(22, 2048, 32, 4, 5632, 32000), 2048, 300e9, "A100", 3_456,
     "300B tokens at its stated speed (V)"),
    ("MPT-7B", _gpt(32, 4096, 32, 50432), 2048, 1e12, "A100", 440 * 228, "one run (V; GPUs 2)"),
    ("GPT-2 124M", _gpt(12, 768, 12, 50304), 1024, 10e9, "A100", 8 * 94 / 60, "one run, llm.c (V)"),
    ("BLOOM 176B", _gpt(70, 14336, 112, 250880), 2048, 366e9, "A100", 1_083_000, "all (2)"),
    ("Llama 3 8B", _llama(32, 4096, 32, 8, 14336, 128256), 8192, 15e12, "H100", 1.3e6, _NOT_ONE),
    ("Llama 3 70B", _llama(80, 8192, 64, 8, 28672, 128256), 8192, 15e12, "H100", 6.4e6, _NOT_ONE),
    ("Llama 3.1 405B", _llama(126, 16384, 128, 8, 53248, 128256), 8192, 15.6e12, "H100", 30.84e6,
     "all, model card (V; FLOPs 2)", None, 3.8e25),
    ("GPT-2 1558M", _gpt(48, 1600, 25, 50304), 1024, 33e9, "H100", 8 * 24, "one run, llm.c (V)"),
    ("DeepSeek 67B", _llama(95, 8192, 64, 8, 22016, 102400), 4096, 1e12, "H800", 300_600,
     "per 1T tokens, V2 report (V)"),
    ("DeepSeek-V2", _latent(60, 128), 4096, 1e12, "H800", 172_800,
     "per 1T tokens, report (V; shape 2)", 21e9),
    ("DeepSeek-V3", _latent(61, 128), 4096, 14.8e12, "H800", 2.664e6,
     "pre-training, FP8; all 2.788M (V; shape 2)", 37e9),
    ("GPT-3 175B", _gpt(96, 12288, 96, 50257), 2048, 300e9, None, None, "no hours, paper (2)", None,
     3.14e23)))

CLAIMS = (  # what is often said of DeepSeek, what the record shows, where
    ("The H800 is an export version of the A100", "no: of the H100; the A100's is the A800", "2"),
    ("Slower chips made it cheap", "the peak of matrix products is about unchanged, the "
     "interconnect is cut; no evidence of a lower price found", "chip tables, 2"),
    ("It cost under $10M", "the 67B's final run is about $1.2M at $2 an hour (D), V3's $5.576M "
     "(V): rents of final runs only, without research and ablations", "V2 and V3 reports"),
    ("It cost under a tenth of the usual", "Llama 2 70B: 1.72M A100-hours, about $3.0M at $1.75; "
     "2.5 times the 67B, at nearly equal FLOPs", "Llama 2 card, llm.c, D"),
    ("It did not take trillions of tokens", "2T, as many as Llama 2", "DeepSeek LLM §2, V"),
    ("It is mainly Chinese", "both English and Chinese; the split is not published in what we "
     "read", "DeepSeek LLM §2, V"),
    ("Its vocabulary is smaller", "102,400: 3.2 times Llama 2's", "DeepSeek LLM §2, V"),
    ("Its attention is sparse", "dense; grouped queries in the 67B only", "DeepSeek LLM §2, V"),
    ("It computed in FP16", "bf16 with fp32 accumulation", "DeepSeek LLM §2, V"),
    ("It used gradient checkpointing, synthetic data, a state cloud",
     "no evidence in what we read", "DeepSeek LLM §2"),
    ("Cheap energy and cooling made it cheap", "they are about 4% of the bill: 601K hours × "
     "0.7 kW × PUE 1.3 = 547 MWh, $44K at $0.08", "D"))


# --- Counting -----------------------------------------------------------------------------------

def _get(config, name, default=None):
    value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return default if value is None else value


def _field(config, name, default=None):
    """Return a whole number of at least 1 from a config; a missing or impossible one is named."""
    value = _get(config, name, default)
    if value is None:
        raise ValueError(f"the config has no {name}: take a Llama-family config.json")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1")
    return value


def _positive(name, value):
    if not isinstance(value, numbers.Real) or value is True or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}: it must be a number above 0")
    return value


def _widths(config):
    """Return H·D, the width of the queries, and K·D, that of the keys and of the values."""
    heads = _field(config, "num_attention_heads")
    if _get(config, "head_dim") is None:
        size = _field(config, "hidden_size") // heads
    else:
        size = _field(config, "head_dim")
    return heads * size, _field(config, "num_key_value_heads", heads) * size


def parameters(config):
    """Count parameters: {"embedding", "attention", "mlp", "norms", "head", "total", "matmul"}.

    "head" is 0 when it is tied to the embedding; "matmul" are those that every token is
    multiplied with, the output head among them, tied or not. Raises ValueError for a missing or
    impossible field, and for a mixture of experts.
    """
    if any(_get(config, name, 0) > 1
           for name in ("n_routed_experts", "num_local_experts", "num_experts")):
        raise ValueError("this config is a mixture of experts: give active_parameters by hand")
    layers, hidden = _field(config, "num_hidden_layers"), _field(config, "hidden_size")
    embedding = _field(config, "vocab_size") * hidden
    mlp = _field(config, "mlp_matrices", 3) * hidden * _field(config, "intermediate_size")
    parts = {"embedding": embedding, "attention": layers * 2 * hidden * sum(_widths(config)),
             "mlp": layers * mlp, "norms": (2 * layers + 1) * hidden,
             "head": 0 if _get(config, "tie_word_embeddings", False) else embedding}
    return {**parts, "total": sum(parts.values()),
            "matmul": parts["attention"] + parts["mlp"] + embedding}


def flops_per_token(config, context, active_parameters=None):
    """Count FLOPs per token: {"matrices", "attention", "head", "total", "forward", "backward",
    "recomputation"}. "total" is a training step's; "recomputation" is what full activation
    checkpointing adds to it (the layers' forward pass once more).

    context is the length of a row. The count is linear in it, so for a run that changes lengths
    the mean over its tokens is exact. active_parameters replaces the count of matmul parameters,
    for a mixture of experts ("head" is then part of "matrices").
    """
    attention = (12 * _field(config, "num_hidden_layers") * _widths(config)[0]
                 * _positive("context", context))
    if active_parameters is None:
        head = 6 * _field(config, "vocab_size") * _field(config, "hidden_size")
        matrices = 6 * parameters(config)["matmul"] - head
    else:
        head, matrices = 0, 6 * _positive("active_parameters", active_parameters)
    total = matrices + attention + head
    return {"matrices": matrices, "attention": attention, "head": head, "total": total,
            "forward": total / 3, "backward": total * 2 / 3,
            "recomputation": (matrices + attention) / 3}


def _layer_activations(config, low):
    """Return the bytes per token that autograd keeps in one layer, and how many of them are the
    results of matrix products. `low` is the bytes of a number in a matrix product.

    Follows model.py. Each norm keeps its input, the normalised input and one scale, in fp32;
    attention its queries, keys, values (repeated to H heads), output, and a log-sum-exp a head;
    the MLP gate, silu(gate), up and their product. Autocast casts the normalised input anew for
    each of the five products that read it, fp32 shares it among them.
    """
    hidden, (queries, keys) = _field(config, "hidden_size"), _widths(config)
    mlp = _field(config, "intermediate_size")
    norms = 2 * 4 * (2 * hidden + 1)
    inputs = hidden * low * (2 if low == 4 else 5)
    attention = 4 * queries * low + 4 * _field(config, "num_attention_heads")
    return norms + inputs + attention + 4 * mlp * low, low * (queries + 2 * (keys + hidden + mlp))


MEMORY_CHOICES = {"checkpointing": ("none", "selective", "full"),
                  "precision": ("fp32", "bf16", "fp16"), "optimizer": ("adamw", "muon")}


def memory(config, batch, context, checkpointing="none", precision="fp32", optimizer="adamw",
           document_mask=False):
    """Count bytes: {"weights", "gradients", "optimizer", "weight_copies", "activations",
    "working", "total", "kv_cache"}, to train on `batch` rows of `context` tokens at once.

    checkpointing: "none"; "selective" keeps the results of matrix products and recomputes the
    rest; "full" keeps each layer's input; "working" is then one layer recomputed. precision:
    "fp32", or autocast ("bf16", "fp16") over fp32 weights, with its "weight_copies". optimizer:
    "adamw" (two moments), or "muon" (one for the layers' matrices). document_mask: documents in
    a row are kept apart, so that each layer saves a mask. Left out: what lives for a moment, such
    as a chunk of the logits (they never exist all at once). "kv_cache", to generate from as many
    tokens, is not in "total". Raises ValueError for an unknown choice.
    """
    for name, choice in zip(MEMORY_CHOICES, (checkpointing, precision, optimizer)):
        if choice not in MEMORY_CHOICES[name]:
            raise ValueError(f"unknown {name} {choice!r}: choose {', '.join(MEMORY_CHOICES[name])}")
    tokens = _positive("batch", batch) * _positive("context", context)
    count, low = parameters(config), 4 if precision == "fp32" else 2
    layers, hidden = _field(config, "num_hidden_layers"), _field(config, "hidden_size")
    matrices = count["attention"] + count["mlp"]
    layer, products = _layer_activations(config, low)
    layer += context * low if document_mask else 0
    kept = {"none": layer, "selective": 4 * hidden + products, "full": 4 * hidden}[checkpointing]
    # Above the layers: the last norm, and the loss's gradients for its input and for the head.
    end = tokens * 4 * (3 * hidden + 1) + 4 * count["embedding"]
    end += tokens * context if document_mask and checkpointing != "none" else 0
    parts = {"weights": 4 * count["total"], "gradients": 4 * count["total"],
             "optimizer": 8 * count["total"] - (4 * matrices if optimizer == "muon" else 0),
             "weight_copies": low * matrices if low < 4 else 0,
             "activations": tokens * layers * kept + end,
             "working": 0 if checkpointing == "none" else tokens * layer}
    return {**parts, "total": sum(parts.values()),
            "kv_cache": 2 * layers * _widths(config)[1] * low * tokens}


def measure_ceiling(seconds=1.0, device="cpu", dtype=None):
    """Return the best FLOP/s of a large square matrix product, tried for `seconds` on a torch
    device. dtype: a name such as "float32"; unless given, "bfloat16" on CUDA, else "float32"."""
    import torch
    size = 2048 if device == "cpu" else 8192
    kind = torch.device(device).type
    dtype = getattr(torch, dtype or ("bfloat16" if kind == "cuda" else "float32"))
    matrix = torch.randn(size, size, device=device).to(dtype)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:  # the first only warms up
        began = time.perf_counter()
        matrix @ matrix
        getattr(torch, kind).synchronize()  # a GPU returns before it has computed
        times.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(times[1:])


# --- The price tag ------------------------------------------------------------------------------

def _stated(given, known=()):
    """Return {name: {"value", "source"}} of each assumption: what the caller gave, else what
    `known` ({name: (value, source)}) says, else Assumptions."""
    stated = {field.name: {"value": field.default, "source": field.metadata["help"]}
              for field in dataclasses.fields(Assumptions)}
    for name, (value, source) in dict(known).items():
        stated[name] = {"value": value, "source": source}
    for name, value in given.items():
        if name not in stated:
            raise ValueError(f"unknown assumption {name!r}: choose {', '.join(stated)}")
        if value is not None:
            stated[name] = {"value": _positive(name, value), "source": "given"}
    return stated


def price_tag(config, tokens, seconds, ceiling, context=None, peak_bytes=None, **given):
    """Return the bill of a run that was measured, as a dict that JSON can hold.

    tokens trained on in `seconds`; ceiling in FLOP/s, from `measure_ceiling`; context the length
    of the rows (max_position_embeddings unless given). `given` replaces fields of Assumptions
    (watts, dollars_per_kwh, dollars_per_hour, pue); the tag holds each with its source.
    peak_bytes, where measured, is passed through. Raises ValueError for a number not above 0.
    """
    speed = _positive("tokens", tokens) / _positive("seconds", seconds)
    context = _field(config, "max_position_embeddings") if context is None else context
    assumed = _stated(given)
    count, per_token = parameters(config), flops_per_token(config, context)["total"]
    kwh = assumed["watts"]["value"] * assumed["pue"]["value"] * seconds / 3.6e6
    return {"parameters": count["total"], "matmul_parameters": count["matmul"],
            "context": context, "tokens": tokens, "flops_per_token": per_token,
            "flops": per_token * tokens, "seconds": seconds,
            "flops_per_second": per_token * speed, "ceiling": _positive("ceiling", ceiling),
            "mfu": per_token * speed / ceiling,
            **({} if peak_bytes is None else {"peak_bytes": peak_bytes}),
            "kwh": kwh, "dollars_electricity": kwh * assumed["dollars_per_kwh"]["value"],
            "dollars_rent": seconds / 3600 * assumed["dollars_per_hour"]["value"],
            "convention": CONVENTION, "assumptions": assumed}


def _scaled(value, unit=""):
    """Write a number to three figures: 1.24e9 B is "1.24 GB", a bare count "1.24 B"."""
    value = float(f"{value:.3g}")  # rounded first, so that 999.9 k becomes 1.00 M
    if not value:
        return f"0 {unit}".strip()
    prefixes = ("", *"kMGTPEZY") if unit else ("", *"kMBT")
    step = min(len(prefixes) - 1, max(0, int(math.log10(value) // 3)))
    value /= 1000 ** step
    places = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{places}f} {prefixes[step]}{unit}".strip()


def _table(rows):
    """Lay out rows of strings in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


def _show(value, unit):
    if unit == "%":
        return f"{100 * value:.1f}%"
    if unit == "$":
        return f"${value:,.2f}" if value >= 1 else f"${value:.2g}"
    if unit in ("h", "tokens"):
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return _scaled(1000 * value if unit == "Wh" else value, unit)


LABELS = (  # the keys of a bill or plan, their names on the screen, their units
    ("parameters", "parameters", ""), ("tokens", "tokens", ""), ("context", "row", "tokens"),
    ("flops", "FLOPs", "FLOP"), ("seconds", "time", "s"), ("flops_per_second", "speed", "FLOP/s"),
    ("ceiling", "ceiling (matrix product)", "FLOP/s"), ("mfu", "share of it (MFU)", "%"),
    ("peak_bytes", "peak memory", "B"), ("gpu_hours", "GPU-hours", "h"), ("dollars", "rent", "$"),
    ("kwh", "energy", "Wh"), ("dollars_electricity", "electricity", "$"),
    ("dollars_rent", "rent of such a machine", "$"))


def _labelled(bill):
    rows = [(name, _show(bill[key], unit)) for key, name, unit in LABELS if key in bill]
    return rows + [(f"bits per byte, {source}", f"{bits:.3f}")
                   for source, bits in bill.get("bits_per_byte", {}).items()]


def format_price_tag(tag):
    """Return a price tag as a short table, its convention and assumptions below it."""
    stated = [f"  {name} {entry['value']:.3g}: {entry['source']}"
              for name, entry in tag["assumptions"].items()]
    return "\n".join([_table(_labelled(tag)), f"FLOPs: {tag['convention']}", "assuming", *stated])


# --- Bills that were not measured ---------------------------------------------------------------

def _chip(gpu):
    if gpu not in HARDWARE:
        raise ValueError(f"unknown GPU {gpu!r}: choose {', '.join(HARDWARE)}")
    return HARDWARE[gpu]


def calibrate():
    """Convert BILLS to one convention; return a dict for each.

    "flops"; "ratio" of the computed to the published FLOPs, both without attention; "mfu" that
    the GPU-hours imply; for dense models "predicted_hours" from the median MFU of the other
    dense models on the chip, and its "error". None where it cannot be known.
    """
    rows = []
    for bill in BILLS:
        each = flops_per_token(bill.config, bill.context, bill.active_parameters)
        plain, published = (each["total"] - each["attention"]) * bill.tokens, bill.published_flops
        row = {"bill": bill, "flops": each["total"] * bill.tokens, "predicted_hours": None,
               "error": None, "ratio": published and plain / published, "mfu": None}
        if bill.gpu_hours:
            row["mfu"] = row["flops"] / (bill.gpu_hours * 3600 * _chip(bill.chip).tflops * 1e12)
        rows.append(row)
    for row in rows:
        others = [other["mfu"] for other in _dense(rows, row["bill"].chip) if other is not row]
        if others and row["mfu"] and not row["bill"].active_parameters:
            row["error"] = row["mfu"] / statistics.median(others) - 1
            row["predicted_hours"] = row["bill"].gpu_hours * (1 + row["error"])
    return rows


def _dense(rows, chip=None):
    return [row for row in rows if row["mfu"] and not row["bill"].active_parameters
            and chip in (None, row["bill"].chip)]


def _usual_mfu(gpu):
    """Return the median MFU of the published dense bills on a chip, and its source."""
    rows = calibrate()
    here = _dense(rows, gpu)
    return (statistics.median(row["mfu"] for row in here or _dense(rows)),
            f"median of {len(here)} published dense bills on {gpu}" if here else
            f"median of published dense bills on other chips; none known on {gpu}")


def _rent(flops, gpu, mfu, given):
    """Return the bill of computing `flops` on rented GPUs: hours, dollars, kWh, assumptions."""
    chip = _chip(gpu)
    assumed = _stated(given, {**RENTED, "watts": (chip.watts, chip.source),
                              "dollars_per_hour": (chip.dollars_per_hour, chip.source)})
    mfu, source = _usual_mfu(gpu) if mfu is None else (_positive("mfu", mfu), "given")
    assumed["mfu"] = {"value": mfu, "source": source}
    for name, words in (("watts", "power"), ("dollars_per_hour", "rent")):
        if assumed[name]["value"] is None:
            raise ValueError(f"{gpu} has no known {words}: give {name}")
    hours = flops / (chip.tflops * 1e12 * mfu) / 3600
    kwh = hours * assumed["watts"]["value"] / 1000 * assumed["pue"]["value"]
    return {"gpu": gpu, "mfu": mfu, "gpu_hours": hours, "kwh": kwh,
            "dollars": hours * assumed["dollars_per_hour"]["value"],
            "dollars_electricity": kwh * assumed["dollars_per_kwh"]["value"],
            "convention": CONVENTION, "assumptions": assumed}


def cost(config, context=None, tokens=None, gpu=None, mfu=None, batch=1, precision="bf16",
         active_parameters=None, **given):
    """Price a config: "flops_per_token", "parameters", "memory" by checkpointing mode; with
    tokens the "flops" of training on them; with a gpu of HARDWARE also "gpu_hours", "dollars",
    "kwh", "assumptions".

    context: length of a row (max_position_embeddings unless given). mfu: the median of published
    bills unless given. active_parameters: of a mixture of experts, whose parts and memory are
    left out. `given` replaces assumptions. Raises ValueError for a bad config, an unknown GPU,
    and a chip whose power or rent is neither known nor given.
    """
    context = _field(config, "max_position_embeddings") if context is None else context
    each = flops_per_token(config, context, active_parameters)
    result = {"context": context, "flops_per_token": each}
    if active_parameters is None:
        result["parameters"] = parameters(config)
        result["memory"] = {mode: memory(config, batch, context, mode, precision)
                            for mode in MEMORY_CHOICES["checkpointing"]}
    if tokens is not None:
        result.update(tokens=tokens, flops=each["total"] * _positive("tokens", tokens))
    if gpu is not None:
        if tokens is None:
            raise ValueError("give tokens: the bill of a gpu depends on how many")
        result.update(_rent(result["flops"], gpu, mfu, given))
    return result


# --- The planner --------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The best choices for a compute C, as (coefficient, exponent) of coefficient · C ** exponent.
    C counts FLOPs of the layers alone (no embedding, no head); fitted from `low` to `high`."""

    flops_per_token: tuple
    learning_rate: tuple
    batch_tokens: tuple
    low: float
    high: float
    source: str


DEEPSEEK_LAW = ScalingLaw((0.1715, 0.5243), (0.3118, -0.1250), (0.2920, 0.3271), 1e17, 3e20,
                          "DeepSeek LLM, arXiv 2401.02954 §3, V")


def _candidates(vocab_size, context):
    """Yield configs. Depth is about √C / 2, a rule of thumb through GPT-2 124M (12 layers at 768)
    and DeepSeek 7B (30 at 4096); multi-head, as the models that the law was fitted on."""
    for hidden in range(32, 16385, 32):
        size = 32 if hidden < 512 else 64 if hidden < 2048 else 128
        depth = round(hidden ** 0.5 / 2)
        if hidden % size == 0:
            for layers in range(max(1, depth - 1), depth + 2):
                yield {"hidden_size": hidden, "intermediate_size": math.ceil(hidden / 12) * 32,
                       "num_hidden_layers": layers, "num_attention_heads": hidden // size,
                       "num_key_value_heads": hidden // size, "vocab_size": vocab_size,
                       "max_position_embeddings": max(context, 512), "tie_word_embeddings": True}


def _best_config(flops, vocab_size, context, law):
    """Return the config whose best budget by the law is nearest to `flops`, head included."""
    found = []
    for config in _candidates(vocab_size, context):
        each = flops_per_token(config, context)
        layers = each["total"] - each["head"]
        compute = (layers / law.flops_per_token[0]) ** (1 / law.flops_per_token[1])
        found.append((math.log(each["total"] / layers * compute / flops), config))
    distance, config = min(found, key=lambda entry: abs(entry[0]))
    if abs(distance) > math.log(4):
        size = "small" if distance > 0 else "large"
        raise ValueError(f"a budget of {flops:.2g} FLOPs is too {size} for any model planned here")
    return config


def _fit(config, rows, context, precision, capacity):
    """Return the first (checkpointing, rows at once) whose memory fits, or ("full", None)."""
    for mode in ("none", "full"):
        for some in range(rows, 0, -1):
            if rows % some == 0 and \
                    memory(config, some, context, mode, precision,
                           document_mask=True)["total"] <= capacity:
                return mode, some
    return "full", None


def _budget(flops, dollars, seconds, gpu, mfu, flops_per_second, given):
    """Turn the one budget that was given into FLOPs."""
    budgets = {"flops": flops, "dollars": dollars, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) != 1:
        raise ValueError("give one budget: flops, dollars or seconds")
    amount = _positive(named[0], budgets[named[0]])
    if flops is not None:
        return amount
    if gpu is not None:
        sample = _rent(1e18, gpu, mfu, given)
        return 1e18 * amount / (sample["gpu_hours"] * 3600 if seconds else sample["dollars"])
    if dollars is not None or flops_per_second is None:
        raise ValueError(f"a budget in {named[0]} needs a gpu: choose {', '.join(HARDWARE)}")
    return amount * _positive("flops_per_second", flops_per_second)


def plan(flops=None, dollars=None, seconds=None, gpu=None, mfu=None, flops_per_second=None,
         config=None, vocab_size=None, context=None, memory_gb=None, law=DEEPSEEK_LAW,
         extrapolate=False, **given):
    """Plan the model that a budget should train: flops, or dollars on a gpu, or seconds on a gpu
    or at the flops_per_second that training reaches here. A config that is given is kept.

    Returns "config", "tokens", "learning_rate", "batch_tokens", "rows" and "steps", "flops",
    "law_flops", "memory" with its "checkpointing" and "rows_at_once" (None: not even one row
    fits), "warnings", and the bill where there is a gpu. Raises ValueError for a budget that is
    missing, negative or too small, and outside the range of the law unless `extrapolate`.
    """
    flops = _budget(flops, dollars, seconds, gpu, mfu, flops_per_second, given)
    vocab_size = vocab_size or (2048 if flops < 1e17 else 102400)  # tiny's, DeepSeek's
    context = context or (256 if flops < 1e17 else 4096)
    config = config or _best_config(flops, vocab_size, context, law)
    each = flops_per_token(config, context)
    per_token, warnings = each["total"], []
    compute = flops * (per_token - each["head"]) / per_token
    if not law.low <= compute <= law.high:
        warnings.append(f"{compute:.1e} FLOPs lie outside {law.low:.0e} to {law.high:.0e}, where "
                        f"the law was fitted ({law.source})")
        if not extrapolate:
            raise ValueError(f"{warnings[0]}: give extrapolate to plan there all the same")
    rate, batch = (a * compute ** b for a, b in (law.learning_rate, law.batch_tokens))
    rows = max(1, round(batch / context))
    rows -= rows % 8 if rows > 16 else 0  # so that it divides into micro-batches
    precision = "bf16" if gpu else "fp32"
    limit = (memory_gb or gpu and _chip(gpu).memory_gb or math.inf) * 1e9
    mode, at_once = _fit(config, rows, context, precision, limit)
    needed = memory(config, at_once or 1, context, mode, precision, document_mask=True)
    if at_once is None:
        warnings.append(f"one row needs {_scaled(needed['total'], 'B')}, more than the "
                        f"{_scaled(limit, 'B')} there are: shard the model over several devices")
    return {"config": config, "parameters": parameters(config)["total"], "context": context,
            "tokens": flops / per_token, "flops": flops, "law_flops": compute,
            "learning_rate": rate, "batch_tokens": batch, "rows": rows,
            "steps": max(1, round(flops / per_token / rows / context)),
            "memory": needed,
            "memory_limit": limit, "checkpointing": mode, "rows_at_once": at_once,
            "warnings": warnings, **({"seconds": seconds} if seconds else {}),
            **(_rent(flops, gpu, mfu, given) if gpu else {})}


# --- The command line ---------------------------------------------------------------------------

USAGE = """Print what a model or a run costs.

  runs/tiny                                      the price tag that a run left
  deepseek-llm-7b --gpu H800 --tokens 2e12       a preset, or the path of a config.json
  plan --dollars 100 --gpu H100                  what to train; also --flops 1e18, --minutes 10
  compare runs/a runs/b                          two runs side by side
  calibrate, claims                              published bills and chips; DeepSeek's legends"""


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _read_tag(run):
    path = os.path.join(run, "cost.json")
    if not os.path.isfile(path):
        raise ValueError(f"{run} has no cost.json: a run writes it at its end")
    tag = _read_json(path)
    if any(key not in tag for key in ("flops", "seconds", "convention", "assumptions")):
        raise ValueError(f"{path} is not a price tag: finish the run again")
    return tag


def _find_config(what):
    """Return the config of a preset, a config.json, or a folder that holds one."""
    from nanoseek.model import PRESETS
    path = os.path.join(what, "config.json") if os.path.isdir(what) else what
    if what in PRESETS:
        return PRESETS[what]
    if not os.path.isfile(path):
        raise ValueError(f"{what} is neither a run, nor a config.json, nor a preset: choose "
                         f"{', '.join(PRESETS)}")
    return _read_json(path)


def _parts(title, parts, unit):
    names = " + ".join(f"{name} {_scaled(value, unit)}" for name, value in parts.items()
                       if value and name not in ("total", "matmul", "forward", "backward",
                                                 "recomputation", "kv_cache"))
    return f"{title}: {_scaled(parts['total'], unit)} = {names}"


def _parser(name):
    from nanoseek.cli import Parser
    parser = Parser(f"nanoseek.cost{name}", USAGE)
    for field in dataclasses.fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=float, help="replaces what is assumed")
    parser.add_argument("--gpu", help=", ".join(HARDWARE))
    parser.add_argument("--mfu", type=float, help="share of the peak reached, such as 0.4")
    parser.add_argument("--context", type=int, help="length of a row")
    return parser


def _main_price(argv):
    parser = _parser("")
    parser.add_argument("what", help="a run's folder, a config.json, or a preset")
    parser.add_argument("--tokens", type=float, help="how many to train on, such as 2e12")
    parser.add_argument("--batch", type=int, default=1, help="rows at once, for the memory")
    parser.add_argument("--precision", default="bf16", help="bf16, fp16 or fp32")
    parser.add_argument("--active_parameters", type=float, help="of a mixture of experts")
    given = vars(parser.parse_args(argv))
    what = given.pop("what")
    if os.path.isfile(os.path.join(what, "cost.json")):
        return print(format_price_tag(_read_tag(what)))
    bill = cost(_find_config(what), **given)
    if "parameters" in bill:
        print(_parts("parameters", bill.pop("parameters"), ""))
        for mode, parts in bill.pop("memory").items():
            print(_parts(f"memory, {given['batch']} row(s) in {given['precision']}, checkpointing "
                         f"{mode}", parts, "B"))
    each = bill.pop("flops_per_token")
    print(_parts("training, a token", each, "FLOP"), "(full checkpointing recomputes",
          _scaled(each["recomputation"], "FLOP") + ")")
    print(format_price_tag(bill) if "gpu" in bill else _table(_labelled(bill)))


def _main_compare(argv):
    from nanoseek.cli import Parser
    parser = Parser("nanoseek.cost compare", USAGE)
    parser.add_argument("runs", nargs=2)
    runs = parser.parse_args(argv).runs
    tags = [_read_tag(run) for run in runs]
    left, right = (dict(_labelled(tag)) for tag in tags)
    ratios = {name: f"{tags[1][key] / tags[0][key]:.2f}x" for key, name, _ in LABELS
              if all(tag.get(key) for tag in tags)}
    print(_table([("", *runs, "second / first")] + [
        (name, left.get(name, "-"), right.get(name, "-"), ratios.get(name, ""))
        for name in {**left, **right}]))


def _main_calibrate(argv):
    _parser(" calibrate").parse_args(argv)
    chips = [("chip", "peak TFLOP/s", "W", "$/h", "GB", "source")]
    chips += [(name, f"{chip.tflops:g} {chip.precision}",
               *(f"{figure:g}" if figure else "-"
                 for figure in (chip.watts, chip.dollars_per_hour, chip.memory_gb)), chip.source)
              for name, chip in HARDWARE.items()]
    bills = [("bill", "chip", "tokens", "FLOPs", "of published", "GPU-hours", "MFU", "predicted",
              "error", "scope of the hours")]
    for row in calibrate():
        bill = row["bill"]
        bills.append((bill.model, bill.chip or "-", _scaled(bill.tokens), f"{row['flops']:.3g}",
                      *("-" if value is None else shape.format(value) for value, shape in (
                          (row["ratio"], "{:.1%}"), (bill.gpu_hours, "{:,.0f}"),
                          (row["mfu"], "{:.1%}"), (row["predicted_hours"], "{:,.0f}"),
                          (row["error"], "{:+.0%}"))), bill.scope))
    print(_table(chips), f"\nFLOPs: {CONVENTION}. \"of published\" leaves attention out, as those "
          "do; \"predicted\"\nis by the median MFU of the other dense models on the chip.\n",
          _table(bills), sep="\n")


def _main_claims(argv):
    _parser(" claims").parse_args(argv)
    for claim, record, source in CLAIMS:
        print(f"{claim}?\n    {record} [{source}]")


def _measure_training(planned, seconds=4.0):
    """Return the FLOP/s that steps of the planned model reach here, head and optimizer included."""
    import torch
    from nanoseek.model import ModelConfig, Transformer, loss
    from nanoseek.optim import build_optimizers
    model = Transformer(ModelConfig(**planned["config"]))
    optimizers = build_optimizers(model, "adamw", 1e-4, 0.1)
    rows, context = min(planned["rows"], planned["rows_at_once"] or 1), planned["context"]
    ids = torch.randint(planned["config"]["vocab_size"], (rows, context))
    documents = (torch.arange(context) // 64).expand(rows, context)  # masked, as train masks
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        loss(model, ids, ids, documents).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    each = flops_per_token(planned["config"], context)["total"]
    return each * rows * context / statistics.median(times[2:])  # the first two warm up


def _command(planned, data, out):
    """Return the command line that trains a plan."""
    flags = {**planned["config"], "row_length": planned["context"], "steps": planned["steps"],
             "batch_size": planned["rows"], "optimizer": "adamw",
             "learning_rate": f"{planned['learning_rate']:.2e}",
             "accumulation": planned["rows"] // (planned["rows_at_once"] or 1),
             "activation_checkpointing": planned["checkpointing"] == "full",
             "warmup_steps": min(2000, planned["steps"] // 20),  # 2000: DeepSeek LLM §2.3
             "eval_every": max(1, planned["steps"] // 4), "save_every": planned["steps"],
             "tokens": data, "out": out}
    flags.pop("vocab_size")  # train takes it from the tokens
    return "python -m nanoseek.train " + " ".join(f"--{k} {v}" for k, v in flags.items())


def _main_plan(argv):
    parser = _parser(" plan")
    for name in ("flops", "dollars", "minutes", "memory_gb"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--vocab_size", type=int)
    parser.add_argument("--extrapolate", action="store_true", help="plan outside the fitted range")
    parser.add_argument("--tokens", default="runs/tiny/tokens", help="folder of token shards")
    parser.add_argument("--out", default="runs/plan", help="folder of the planned run")
    given = vars(parser.parse_args(argv))
    data, out, minutes = given.pop("tokens"), given.pop("out"), given.pop("minutes")
    here = given["gpu"] is None
    given["seconds"] = minutes and 60 * minutes
    if here and given["memory_gb"] is None and hasattr(os, "sysconf"):
        given["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if given["vocab_size"] is None and os.path.isfile(os.path.join(data, "manifest.json")):
        given["vocab_size"] = _read_json(os.path.join(data, "manifest.json")).get("vocab_size")
    if here and minutes is not None:
        # No law is fitted for budgets this small: extrapolate, and say so. What a shape reaches
        # decides how large it should be, so a first guess is measured, then the shape it leads to.
        given.update(extrapolate=True, flops_per_second=0.3 * measure_ceiling())
        given["flops_per_second"] = _measure_training(plan(**given))
        given["config"] = plan(**given)["config"]
        given["flops_per_second"] = _measure_training(plan(**given))
    planned = plan(**given)
    shape = planned["config"]
    print(_table(_labelled(planned) + [
        ("shape", f"{shape['num_hidden_layers']} layers, {shape['hidden_size']} wide, "
                  f"{shape['num_attention_heads']} heads, vocabulary {shape['vocab_size']}"),
        ("learning rate", f"{planned['learning_rate']:.2e}"),
        ("batch", f"{_scaled(planned['batch_tokens'])} tokens by the law: {planned['rows']} rows, "
                  f"{planned['rows_at_once']} at once, {planned['steps']} steps"),
        ("memory", f"{_scaled(planned['memory']['total'], 'B')} of "
                   f"{_scaled(planned['memory_limit'], 'B')}"
                   f", checkpointing {planned['checkpointing']}")]))
    for warning in planned["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(_command(planned, data, out))


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    commands = {"plan": _main_plan, "compare": _main_compare, "calibrate": _main_calibrate,
                "claims": _main_claims}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return _main_price(argv)


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
