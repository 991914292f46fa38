"""Count what a model costs: parameters, FLOPs, bytes, hours, dollars, kWh; and plan a budget.

    tag = price_tag(config, tokens=8e6, seconds=120, ceiling=measure_ceiling())
    print(format_price_tag(tag))                        # the bill of a run on this machine
    cost(config, tokens=2e12, gpu="H800")["dollars"]    # the bill of a run on rented GPUs
    plan(dollars=100, gpu="H100")["config"]             # the model that a budget should train

A config is any object or dict with the fields of Hugging Face's Llama: hidden_size,
num_hidden_layers, num_attention_heads, intermediate_size, vocab_size; optional
num_key_value_heads, head_dim, tie_word_embeddings (False unless given, as there), sliding_window.

One convention for FLOPs, everywhere in nanoseek: training costs 6 × (parameters in matrix
products, the output head among them) + 12·L·d·s per token, where L is layers, d = H·D the width
of attention, s the length of a row; attention is counted in full although half of it is masked.
The forward pass is a third. Work done twice (activation checkpointing) is counted apart.

Sources: PaLM (arXiv 2204.02311, appendix B) for model FLOPs and MFU; for the scaling laws DeepSeek
LLM (2401.02954, §3) and, for small budgets, tutorials/experiments/scaling_sweep.py.
cost_tables.json, beside this file, holds chips, published bills and claims, each with its source;
only what needs a chip or a bill reads it. `python -m nanoseek.cost` is told in bill.py.

Glossary: FLOP one multiplication or addition; ceiling the FLOP/s of one large matrix product,
measured here, or a chip's published peak; MFU model FLOPs utilisation, the share of the ceiling
that model FLOPs reach; PUE power of the whole building over the power of its computers.
Shapes: H heads, K key-value heads, D head_dim.
"""

import dataclasses
import json
import math
import numbers
import os
import statistics
import time

CONVENTION = "6 x matmul parameters + 12 L d s a token, attention in full, no recomputation"


def _assumed(value, source):
    return dataclasses.field(default=value, metadata={"help": source})


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a bill assumes where nobody measured, for a laptop; sources in the fields' metadata."""

    watts: float = _assumed(50.0, "assumption: a laptop under full load; a wall meter knows better")
    dollars_per_kwh: float = _assumed(0.20, "assumption: a household's price")
    dollars_per_hour: float = _assumed(0.10, "assumption: rent of a small cloud machine")
    pue: float = _assumed(1.0, "a machine at home has no building around it")


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


def positive(name, value, most=math.inf):
    """Return a finite number above 0; raise ValueError, with its name, for anything else."""
    if not isinstance(value, numbers.Real) or value is True or not 0 < value <= most \
            or value == math.inf:
        limit = f" and at most {most}" * (most < math.inf)
        raise ValueError(f"{name} is {value!r}: it must be a number above 0{limit}")
    return value


def _widths(config):
    """Return H·D, the width of the queries, and K·D, that of the keys and of the values."""
    heads = _field(config, "num_attention_heads")
    if _get(config, "v_head_dim") is not None:  # DeepSeek-V2's and V3's: scores wider than values
        size = sum(_field(config, f"{part}_head_dim") for part in ("qk_nope", "qk_rope", "v")) // 2
    elif _get(config, "head_dim") is not None:
        size = _field(config, "head_dim")
    else:
        size = _field(config, "hidden_size") // heads
    return heads * size, _field(config, "num_key_value_heads", heads) * size


def _reach(config, context):
    """Return how many positions attention pays for: the row's, or those of a sliding window."""
    if _get(config, "sliding_window") is None or not _get(config, "use_sliding_window", True):
        return context
    return min(context, _field(config, "sliding_window"))


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
                 * _reach(config, positive("context", context)))
    if active_parameters is None:
        head = 6 * _field(config, "vocab_size") * _field(config, "hidden_size")
        matrices = 6 * parameters(config)["matmul"] - head
    else:
        head, matrices = 0, 6 * positive("active_parameters", active_parameters)
    total = matrices + attention + head
    return {"matrices": matrices, "attention": attention, "head": head, "total": total,
            "forward": total / 3, "backward": total * 2 / 3,
            "recomputation": (matrices + attention) / 3}


def _layer_activations(config, low, copies):
    """Return the bytes per token that autograd keeps in one layer, and how many of them are the
    results of matrix products. `low` is the bytes of a number in a matrix product.

    Follows model.py. Each norm keeps the normalised input and one scale, in fp32; attention its
    queries, keys, values (`copies` of them: three where a block of the sliding window reaches two
    blocks back), output, and a log-sum-exp a head; the MLP gate, silu(gate), up and their product.
    Autocast casts the normalised input anew for each of the five products that read it, fp32 shares
    it among them.
    """
    hidden, (queries, keys) = _field(config, "hidden_size"), _widths(config)
    mlp = _field(config, "intermediate_size")
    norms = 2 * 4 * (hidden + 1)
    inputs = hidden * low * (2 if low == 4 else 5)
    attention = 2 * (queries + copies * keys) * low + 4 * _field(config, "num_attention_heads")
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
    a row are kept apart, which takes a mask. Left out: what lives for a moment, such
    as a chunk of the logits (they never exist all at once; on CUDA a chunk takes up to 2 GB).
    "kv_cache", to generate from as many tokens, is not in "total". Raises ValueError for an
    unknown choice.
    """
    for name, choice in zip(MEMORY_CHOICES, (checkpointing, precision, optimizer)):
        if choice not in MEMORY_CHOICES[name]:
            raise ValueError(f"unknown {name} {choice!r}: choose {', '.join(MEMORY_CHOICES[name])}")
    tokens = positive("batch", batch) * positive("context", context)
    count, low = parameters(config), 4 if precision == "fp32" else 2
    layers, hidden = _field(config, "num_hidden_layers"), _field(config, "hidden_size")
    matrices = count["attention"] + count["mlp"]
    seen = _reach(config, context)
    layer, products = _layer_activations(config, low, 1 if seen == context else 3)
    kept = {"none": layer, "selective": 4 * hidden + products, "full": 4 * hidden}[checkpointing]
    # Above the layers: the last norm, and the loss's gradients for its input and for the head.
    end = tokens * 4 * (2 * hidden + 1) + 4 * count["embedding"]
    if seen < context:  # a mask for all layers: of three blocks, each half the window
        end += int(1.5 * seen) * tokens * low
    elif document_mask:
        end += tokens * context * low
    parts = {"weights": 4 * count["total"], "gradients": 4 * count["total"],
             "optimizer": 8 * count["total"] - (4 * matrices if optimizer == "muon" else 0),
             "weight_copies": low * matrices if low < 4 else 0,
             "activations": tokens * layers * kept + end,
             "working": 0 if checkpointing == "none" else tokens * layer}
    return {**parts, "total": sum(parts.values()),
            "kv_cache": 2 * layers * _widths(config)[1] * low * batch * seen}


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
    stated = {field.name: (field.default, field.metadata["help"])
              for field in dataclasses.fields(Assumptions)}
    stated.update(known)
    for name, value in given.items():
        if name not in stated:
            raise ValueError(f"unknown assumption {name!r}: choose {', '.join(stated)}")
        if value is not None:
            stated[name] = positive(name, value), "given"
    return {name: {"value": value, "source": source} for name, (value, source) in stated.items()}


def price_tag(config, tokens, seconds, ceiling, context=None, peak_bytes=None, **given):
    """Return the bill of a run that was measured, as a dict that JSON can hold.

    tokens trained on in `seconds`; ceiling in FLOP/s, from `measure_ceiling`; context the length
    of the rows (max_position_embeddings unless given). `given` replaces fields of Assumptions
    (watts, dollars_per_kwh, dollars_per_hour, pue); the tag holds each with its source.
    peak_bytes, where measured, is passed through. Raises ValueError for a number not above 0.
    """
    speed = positive("tokens", tokens) / positive("seconds", seconds)
    context = _field(config, "max_position_embeddings") if context is None else context
    assumed = _stated(given)
    value = {name: entry["value"] for name, entry in assumed.items()}
    count, each = parameters(config), flops_per_token(config, context)["total"]
    kwh = value["watts"] * value["pue"] * seconds / 3.6e6
    return {"parameters": count["total"], "matmul_parameters": count["matmul"],
            "context": context, "tokens": tokens, "flops_per_token": each, "flops": each * tokens,
            "seconds": seconds, "flops_per_second": each * speed,
            "ceiling": positive("ceiling", ceiling), "mfu": each * speed / ceiling,
            **({} if peak_bytes is None else {"peak_bytes": peak_bytes}),
            "kwh": kwh, "dollars_electricity": kwh * value["dollars_per_kwh"],
            "dollars_rent": seconds / 3600 * value["dollars_per_hour"],
            "convention": CONVENTION, "assumptions": assumed}


LABELS = (  # the keys of a bill or a plan, their names on the screen, their units
    ("parameters", "parameters", ""), ("tokens", "tokens", ""), ("context", "row", "tokens"),
    ("flops", "FLOPs", "FLOP"), ("seconds", "time", "s"), ("flops_per_second", "speed", "FLOP/s"),
    ("ceiling", "ceiling", "FLOP/s"), ("mfu", "MFU, share of it", "%"),
    ("peak_bytes", "peak memory", "B"), ("gpu_hours", "GPU-hours", "h"), ("dollars", "rent", "$"),
    ("kwh", "energy", "Wh"), ("dollars_electricity", "electricity", "$"),
    ("dollars_rent", "rent of such a machine", "$"))


def show(value, unit=""):
    """Write a number to three figures: 1.24e9 B is "1.24 GB", a bare count "1.24 B"."""
    if unit == "%":
        return f"{100 * value:.1f}%"
    if unit == "$":
        return f"${value:,.2f}" if value >= 1 else f"${value:.2g}"
    if unit == "s" and value >= 120:
        return f"{value / 60:.1f} min" if value < 7200 else show(value / 3600, "h")
    if unit in ("h", "tokens") and value >= 1000:
        return f"{value:,.0f} {unit}"
    value = float(f"{value * (1000 if unit == 'Wh' else 1):.3g}")  # so that 999.9 becomes 1.00 k
    prefixes = ("", *"kMGTPEZY") if unit else ("", *"kMBT")
    step = min(len(prefixes) - 1, max(0, math.floor(math.log10(value or 1) / 3)))
    value /= 1000 ** step
    places = max(0, 2 - math.floor(math.log10(value or 100)))
    return f"{value:.{places}f} {prefixes[step]}{unit}".strip()


def labelled(bill):
    """Return (name, value) of what a bill or a plan holds, as strings, in the order of LABELS."""
    rows = [(name, show(bill[key], unit)) for key, name, unit in LABELS if key in bill]
    return rows + [(f"bits per byte, {source}", f"{bits:.3f}")
                   for source, bits in bill.get("bits_per_byte", {}).items()]


def columns(rows):
    """Lay out rows of strings in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


def format_assumptions(bill):
    """Return the assumptions of a bill with their sources, a line each."""
    return "\n".join(["assuming", *(f"  {name} {entry['value']:.3g}: {entry['source']}"
                                    for name, entry in bill["assumptions"].items())])


def format_price_tag(tag):
    """Return a price tag as a short table, its convention and assumptions below it."""
    return f"{columns(labelled(tag))}\nFLOPs: {tag['convention']}\n{format_assumptions(tag)}"


# --- Bills that were not measured ---------------------------------------------------------------

def read_json(path):
    """Return the object in a JSON file; raise ValueError, with its path, where there is none."""
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def tables():
    """Read cost_tables.json: "hardware", "bills", "claims", "rented", each figure with its source.

    Marks: V read in the primary source, 2 second-hand, D derived from V. Raises ValueError when
    the file is not beside this one.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cost_tables.json")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing: copy it beside cost.py, it holds chips and bills")
    return read_json(path)


def _chip(gpu):
    hardware = tables()["hardware"]
    if gpu not in hardware:
        raise ValueError(f"unknown GPU {gpu!r}: choose {', '.join(hardware)}")
    return hardware[gpu]


def calibrate():
    """Convert the published bills to one convention; return each with what follows from it.

    "flops"; "ratio" of the computed to the published FLOPs, both without attention; "mfu" that
    the GPU-hours imply; for dense models "predicted_hours" from the median MFU of the other
    dense models on the chip, and its "error". None where it cannot be known.
    """
    rows, hardware = tables()["bills"], tables()["hardware"]
    for row in rows:
        each = flops_per_token(row["config"], row["context"], row.get("active_parameters"))
        plain, published = each["total"] - each["attention"], row.get("published_flops")
        row.update(flops=each["total"] * row["tokens"], mfu=None, predicted_hours=None, error=None,
                   ratio=published and plain * row["tokens"] / published)
        if row["gpu_hours"]:
            peak = hardware[row["chip"]]["tflops"] * 1e12
            row["mfu"] = row["flops"] / (row["gpu_hours"] * 3600 * peak)
    for row in rows:
        others = [other["mfu"] for other in _dense(rows, row["chip"]) if other is not row]
        if others and row in _dense(rows):
            row["error"] = row["mfu"] / statistics.median(others) - 1
            row["predicted_hours"] = row["gpu_hours"] * (1 + row["error"])
    return rows


def _dense(rows, chip=None):
    return [row for row in rows if row["mfu"] and "active_parameters" not in row
            and chip in (None, row["chip"])]


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
    peak = chip["tflops"] * 1e12
    assumed = _stated(given, {**tables()["rented"], **{
        name: (chip[name], f"{gpu}: {chip['source']}") for name in ("watts", "dollars_per_hour")}})
    mfu, source = _usual_mfu(gpu) if mfu is None else (positive("mfu", mfu, 1), "given")
    for name, words in (("watts", "power"), ("dollars_per_hour", "rent")):
        if assumed[name]["value"] is None:
            raise ValueError(f"{gpu} has no known {words}: give {name}")
    value = {name: entry["value"] for name, entry in assumed.items()}
    hours = flops / (peak * mfu) / 3600
    kwh = hours * value["watts"] / 1000 * value["pue"]
    return {"gpu": gpu, "ceiling": peak, "mfu": mfu, "gpu_hours": hours, "kwh": kwh,
            "dollars": hours * value["dollars_per_hour"],
            "dollars_electricity": kwh * value["dollars_per_kwh"], "convention": CONVENTION,
            "assumptions": {**assumed, "mfu": {"value": mfu, "source": source}}}


def _refuse_unused(gpu, mfu, given):
    """Raise ValueError when something is assumed about a GPU that is not named."""
    idle = [name for name, value in {"mfu": mfu, **given}.items() if value is not None]
    if idle and gpu is None:
        raise ValueError(f"{', '.join(idle)} would change nothing: give gpu as well")


def cost(config, context=None, tokens=None, gpu=None, mfu=None, batch=1, precision="bf16",
         active_parameters=None, **given):
    """Price a config: "flops_per_token", "parameters", "memory" by checkpointing mode; with
    tokens the "flops" of training on them; with a gpu also "gpu_hours", "dollars", "kwh".

    context: length of a row (max_position_embeddings unless given). mfu: the median of published
    bills unless given. active_parameters: of a mixture of experts, whose parts and memory are
    left out. `given` replaces assumptions. Raises ValueError for a bad config, an unknown GPU,
    and a chip whose power or rent is neither known nor given.
    """
    _refuse_unused(gpu, mfu, given)
    context = _field(config, "max_position_embeddings") if context is None else context
    each = flops_per_token(config, context, active_parameters)
    result = {"context": context, "flops_per_token": each}
    if active_parameters is None:
        result["parameters"] = parameters(config)
        result["memory"] = {mode: memory(config, batch, context, mode, precision)
                            for mode in MEMORY_CHOICES["checkpointing"]}
    if tokens is not None:
        result.update(tokens=tokens, flops=each["total"] * positive("tokens", tokens))
    elif gpu is not None:
        raise ValueError("give tokens: the bill of a gpu depends on how many")
    return {**result, **(_rent(result["flops"], gpu, mfu, given) if gpu is not None else {})}


# --- The planner --------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The best choices for a compute C, each as (coefficient, exponent) of coefficient·C^exponent.
    C counts the FLOPs of the layers alone (no head). Fitted from `low` to `high` with a vocabulary,
    rows of `context` tokens, and the settings of train in `recipe`."""

    flops_per_token: tuple
    learning_rate: tuple
    batch_tokens: tuple
    low: float
    high: float
    vocab_size: int
    context: int
    recipe: dict
    source: str


DEEPSEEK_LAW = ScalingLaw(
    (0.1715, 0.5243), (0.3118, -0.1250), (0.2920, 0.3271), 1e17, 3e20, 102400, 4096,
    {"optimizer": "adamw", "schedule": "multi_step", "embedding_factor": 1.0, "beta2": 0.95,
     "initializer_range": 0.006}, "DeepSeek LLM, arXiv 2401.02954 §3")
LAW_TINY = ScalingLaw(
    (2.683, 0.4591), (82.71, -0.3411), (0.03625, 0.3714), 8.9e+10, 8.8e+12, 4096, 256,
    {"optimizer": "muon", "schedule": "linear", "embedding_factor": 5.0, "beta2": 0.95},
    "our sweep on the stories, tutorials/experiments/scaling_sweep.json")
LAWS = (LAW_TINY, DEEPSEEK_LAW)


def planned_shape(hidden, vocab_size, context):
    """Return the config that is planned at a width: 2 layers up to 128 wide, as the tiny preset,
    then one for each 64 (GPT-2 124M: 768 wide, 12), from 1024 on √hidden / 2 (DeepSeek 7B: 4096,
    30); multi-head and untied, as the models of both laws were."""
    size = next((n for n in (128, 64, 32) if hidden % n == 0 and hidden >= 16 * n), 16)
    heads = hidden // size
    return {"hidden_size": hidden, "intermediate_size": math.ceil(hidden / 12) * 32,
            "num_hidden_layers": max(2, min(hidden // 64, round(hidden ** 0.5 / 2))),
            "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab_size,
            "max_position_embeddings": max(context, 512), "tie_word_embeddings": False}


def _best_config(flops, vocab_size, context, law):
    """Return the config whose best budget by the law is nearest to `flops`, head included."""
    found = []
    for hidden in (*range(16, 512, 16), *range(512, 16385, 64)):
        config = planned_shape(hidden, vocab_size, context)
        each = flops_per_token(config, context)
        layers = each["total"] - each["head"]
        compute = (layers / law.flops_per_token[0]) ** (1 / law.flops_per_token[1])
        found.append((math.log(each["total"] / layers * compute / flops), config))
    distance, config = min(found, key=lambda entry: abs(entry[0]))
    if abs(distance) > math.log(4):
        size = "small" if distance > 0 else "large"
        raise ValueError(f"a budget of {flops:.2g} FLOPs is too {size} for any model planned here")
    return config


def _fit(config, rows, context, memory_gb, gpu, optimizer):
    """Return the first "checkpointing" and "rows_at_once" whose "memory" fits in 90% of
    "memory_limit" (allocators waste some); rows_at_once is None when not even one row does."""
    known = _chip(gpu)["memory_gb"] if gpu and memory_gb is None else memory_gb
    limit = math.inf if known is None else 1e9 * positive("memory_gb", known)
    precision = "bf16" if gpu else "fp32"
    for mode in ("none", "full"):
        for some in (n for n in range(rows, 0, -1) if rows % n == 0):
            needed = memory(config, some, context, mode, precision, optimizer, document_mask=True)
            if needed["total"] <= 0.9 * limit:
                return {"checkpointing": mode, "rows_at_once": some, "memory": needed,
                        "memory_limit": limit}
    return {"checkpointing": mode, "rows_at_once": None, "memory": needed, "memory_limit": limit}


def _budget(flops, dollars, seconds, gpu, mfu, flops_per_second, given):
    """Turn the one budget that was given into FLOPs."""
    budgets = {"flops": flops, "dollars": dollars, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) != 1:
        raise ValueError("give one budget: flops, dollars or seconds (--minutes)")
    amount = positive(named[0], budgets[named[0]])
    if flops is not None:
        return amount
    if gpu is not None:
        sample = _rent(1e18, gpu, mfu, given)
        return 1e18 * amount / (sample["gpu_hours"] * 3600 if seconds else sample["dollars"])
    if dollars is not None or flops_per_second is None:
        raise ValueError(f"a budget in {named[0]} needs a gpu: "
                         f"choose {', '.join(tables()['hardware'])}")
    return amount * positive("flops_per_second", flops_per_second)


def _nearest_law(flops):
    return min(LAWS, key=lambda law: max(0, math.log(law.low / flops), math.log(flops / law.high)))


def plan(flops=None, dollars=None, seconds=None, gpu=None, mfu=None, flops_per_second=None,
         config=None, vocab_size=None, context=None, memory_gb=None, law=None, extrapolate=False,
         **given):
    """Plan the model that a budget should train: flops, or dollars on a gpu, or seconds on a gpu
    or at the flops_per_second that training reaches here. A config that is given is kept; the law
    is that of LAWS whose range is nearest, vocab_size and context (length of a row) are the law's.

    Returns "config", "tokens", "learning_rate", "batch_tokens", "rows" and "steps", "flops",
    "law_flops", "recipe", "memory" with its "checkpointing" and "rows_at_once" (None: not even one
    row fits), "warnings", and the bill where there is a gpu. Raises ValueError for a budget that is
    missing, negative or too small, and outside the range of the law unless `extrapolate`.
    """
    _refuse_unused(gpu, mfu, given)
    flops = positive("the budget in FLOPs", _budget(flops, dollars, seconds, gpu, mfu,
                                                    flops_per_second, given))
    law = law or _nearest_law(flops)
    vocab_size = law.vocab_size if vocab_size is None else vocab_size
    context = law.context if context is None else context
    config = config or _best_config(flops, vocab_size, context, law)
    each, warnings = flops_per_token(config, context), []
    tokens = flops / each["total"]
    compute = tokens * (each["total"] - each["head"])
    if not law.low <= compute <= law.high:
        warnings.append(f"{compute:.1e} FLOPs in the layers lie outside {law.low:.0e} to "
                        f"{law.high:.0e}, where the law was fitted ({law.source})")
        if not extrapolate:
            raise ValueError(f"{warnings[0]}: give extrapolate to plan there all the same")
    rate, batch = (a * compute ** b for a, b in (law.learning_rate, law.batch_tokens))
    rows = max(1, round(batch / context))
    rows -= rows % 8 if rows > 16 else 0  # so that it divides into micro-batches
    fit = _fit(config, rows, context, memory_gb, gpu, law.recipe["optimizer"])
    if fit["rows_at_once"] is None:
        warnings.append(f"one row needs {show(fit['memory']['total'], 'B')} of the "
                        f"{show(fit['memory_limit'], 'B')} there are: shard the model over "
                        "several devices")
    return {"config": config, "parameters": parameters(config)["total"], "context": context,
            "tokens": tokens, "flops": flops, "law_flops": compute, "learning_rate": rate,
            "batch_tokens": batch, "rows": rows, "steps": max(1, round(tokens / rows / context)),
            "law": law.source, "recipe": law.recipe, **fit, "warnings": warnings,
            **({} if seconds is None else {"seconds": seconds}),
            **({} if gpu is None else _rent(flops, gpu, mfu, given))}


if __name__ == "__main__":
    from nanoseek.lab.bill import main
    from nanoseek.cli import run
    run(main)
