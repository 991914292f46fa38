"""What should a budget train? A model's size, tokens, learning rate and batch, by scaling laws.

    plan(dollars=100, gpu="H100")["config"]             # the shape to train
    plan(seconds=180, flops_per_second=1e11)["tokens"]  # on a machine that reaches so many FLOP/s

A larger model learns more from each token, but sees fewer tokens for the same compute. A scaling
law says which split is best for a compute C, and which learning rate and batch. Two are known here:
DeepSeek LLM's (2401.02954, §3) and, for small budgets, tutorials/experiments/scaling_sweep.py.
"""

import math
import typing

from nanoseek.cost import flops_per_token, memory, parameters, positive, rent, tables
from nanoseek.lab.price_tag import show


class ScalingLaw(typing.NamedTuple):
    """The best choices for a compute C, each as (coefficient, exponent) of coefficient·C^exponent.

    C counts the FLOPs of the layers alone (no head). Fitted from `least` to `most` FLOPs with a
    vocabulary, rows of `context` tokens, and the settings of train in `recipe`.
    """

    flops_per_token: tuple
    learning_rate: tuple
    batch_tokens: tuple
    least: float
    most: float
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


def best_config(flops, vocab_size, context, law):
    """Return the config whose best budget by the law is nearest to `flops`, head included.

    Raises ValueError where no width planned here comes within a factor of 4.
    """
    found = []
    for hidden in (*range(16, 512, 16), *range(512, 16385, 64)):
        config = planned_shape(hidden, vocab_size, context)
        each = flops_per_token(config, context)
        layers = each["total"] - each["head"]
        # The law backwards: the compute C for which a model of this size is the best.
        compute = (layers / law.flops_per_token[0]) ** (1 / law.flops_per_token[1])
        found.append((math.log(each["total"] / layers * compute / flops), config))
    distance, config = min(found, key=lambda entry: abs(entry[0]))
    if abs(distance) > math.log(4):
        raise ValueError(f"a budget of {flops:.2g} FLOPs is too "
                         f"{'small' if distance > 0 else 'large'} for any model planned here")
    return config


def fit_memory(config, rows, context, memory_gb, gpu, optimizer):
    """Return the first "checkpointing" and "rows_at_once" whose "memory" fits in 90% of the
    memory (allocators waste some); rows_at_once is None when not even one row does."""
    known = tables()["hardware"][gpu]["memory_gb"] if gpu and memory_gb is None else memory_gb
    limit = math.inf if known is None else 1e9 * positive("memory_gb", known)
    for mode, at_once in ((mode, n) for mode in ("none", "full")
                          for n in range(rows, 0, -1) if rows % n == 0):
        needed = memory(config, at_once, context, mode, "bf16" if gpu else "fp32", optimizer,
                        document_mask=True)
        if needed["total"] <= 0.9 * limit:
            return {"checkpointing": mode, "rows_at_once": at_once, "memory": needed}
    return {"checkpointing": mode, "rows_at_once": None, "memory": needed}


def budget_flops(flops, dollars, seconds, flops_per_second, gpu, **given):
    """Return the FLOPs that a budget buys; raise ValueError unless it is one, and above 0."""
    budgets = {"flops": flops, "dollars": dollars, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) != 1:
        raise ValueError("give one budget: flops, dollars or seconds (--minutes)")
    buys = {"flops": 1, "dollars": None, "seconds": flops_per_second}  # one of each, in FLOPs
    if gpu is not None:
        sample = rent(1e18, gpu, **given)
        buys.update(dollars=1e18 / sample["dollars"], seconds=1e18 / sample["gpu_hours"] / 3600)
    (name,) = named
    if buys[name] is None:
        raise ValueError(f"{name} need a gpu: choose {', '.join(tables()['hardware'])}")
    return positive("the budget in FLOPs", positive(name, budgets[name]) * buys[name])


def plan(flops=None, dollars=None, seconds=None, gpu=None, flops_per_second=None, config=None,
         vocab_size=None, context=None, memory_gb=None, law=None, **given):
    """Plan the model that a budget should train: flops, or dollars on a gpu, or seconds on a gpu
    or at the flops_per_second that training reaches here. A config that is given is kept; the law
    is the nearest, and vocab_size and context (length of a row) are the law's, unless given.

    Returns "config", "tokens", "learning_rate", "batch_tokens", "rows", "steps", "flops", "recipe",
    "warnings", what `fit_memory` does, with a gpu its bill.
    """
    flops = budget_flops(flops, dollars, seconds, flops_per_second, gpu, **given)
    law = law or min((LAW_TINY, DEEPSEEK_LAW), key=lambda law: max(
        0, math.log(law.least / flops), math.log(flops / law.most)))  # how far out of its range
    vocab_size = law.vocab_size if vocab_size is None else vocab_size
    context = law.context if context is None else context
    config = config or best_config(flops, vocab_size, context, law)
    each, warnings = flops_per_token(config, context), []
    tokens = flops / each["total"]
    compute = tokens * (each["total"] - each["head"])
    if not law.least <= compute <= law.most:
        warnings.append(f"{compute:.1e} FLOPs in the layers lie outside {law.least:.0e} to "
                        f"{law.most:.0e}, where the law was fitted ({law.source})")
    rate, batch = (a * compute ** b for a, b in (law.learning_rate, law.batch_tokens))
    rows = max(1, round(batch / context))
    rows -= rows % 8 if rows > 16 else 0  # so that it divides into micro-batches
    fit = fit_memory(config, rows, context, memory_gb, gpu, law.recipe["optimizer"])
    if fit["rows_at_once"] is None:
        warnings.append(f"one row needs {show(fit['memory']['total'], 'B')}: shard the model over "
                        "several devices")
    return {"law": law.source, "law_flops": compute, "recipe": law.recipe, "config": config,
            "parameters": parameters(config)["total"], "context": context, "tokens": tokens,
            "learning_rate": rate, "batch_tokens": batch, "rows": rows, **fit,
            "steps": max(1, round(tokens / rows / context)), "flops": flops, "warnings": warnings,
            **({} if seconds is None else {"seconds": seconds}), **rent(flops, gpu, **given)}
