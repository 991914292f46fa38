"""What should a budget train? A model's size, tokens, learning rate and batch, by scaling laws.

    plan(dollars=100, gpu="H100")["config"]             # the shape to train
    plan(seconds=180, flops_per_second=1e11)["tokens"]  # on a machine that reaches so many FLOP/s

A larger model learns more from each token, but sees fewer tokens for the same compute. A scaling
law says which split is best for a compute C, and which learning rate and batch. Two are known here:
DeepSeek LLM's (2401.02954, §3) and, for small budgets, tutorials/experiments/scaling_sweep.py."""

import math
import pathlib
import types

from nanoseek.checkpoint import read_json
from nanoseek.cost import flops_per_token, memory, parameters, positive, rent, tables
from nanoseek.lab.price_tag import show


def laws():
    """Return our law and DeepSeek's. Pairs are a, b of a·C^b, C the layers' FLOPs (no head)."""
    laws = read_json(pathlib.Path(__file__).with_name("laws.json"))
    return [types.SimpleNamespace(**law) for law in laws.values()]


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
    """Return the config whose best budget by the law, head included, is nearest to `flops`; raise
    ValueError where no width planned here comes within a factor of 4."""
    found, (coefficient, exponent) = [], law.flops_per_token
    for hidden in (*range(16, 512, 16), *range(512, 16385, 64)):
        config = planned_shape(hidden, vocab_size, context)
        each = flops_per_token(config, context)
        layers = each["total"] - each["head"]
        # The law backwards: the compute C for which a model of this size is the best.
        compute = (layers / coefficient) ** (1 / exponent)
        found.append((math.log(each["total"] / layers * compute / flops), config))
    distance, config = min(found, key=lambda entry: abs(entry[0]))
    if abs(distance) > math.log(4):
        size = "small" if distance > 0 else "large"
        raise ValueError(f"a budget of {flops:.2g} FLOPs is too {size} for any model planned here")
    return config


def fit_memory(config, rows, context, memory_gb, gpu, optimizer):
    """Return the first "checkpointing" and "rows_at_once" whose "memory" fits in 90% of the
    memory (allocators waste some); rows_at_once is None when not even one row does."""
    known = tables()["hardware"][gpu]["memory_gb"] if gpu and memory_gb is None else memory_gb
    limit = math.inf if known is None else 1e9 * positive("memory_gb", known)
    for mode in ("none", "full"):
        for at_once in (n for n in range(rows, 0, -1) if rows % n == 0):
            needed = memory(config, at_once, context, mode, "bf16" if gpu else "fp32", optimizer,
                            document_mask=True)
            if needed["total"] <= 0.9 * limit:
                return {"checkpointing": mode, "rows_at_once": at_once, "memory": needed}
    return {"checkpointing": mode, "rows_at_once": None, "memory": needed}


def budget_flops(budgets, flops_per_second, gpu, **given):
    """Return the FLOPs that a budget buys; raise ValueError unless it is one, and above 0."""
    named = [(name, amount) for name, amount in budgets.items() if amount is not None]
    if len(named) != 1:
        raise ValueError("give one budget: flops, dollars or seconds (--minutes)")
    buys = {"flops": 1, "seconds": flops_per_second}  # what one of each buys
    if gpu is not None:
        bill = rent(1e18, gpu, **given)
        buys |= {"dollars": 1e18 / bill["dollars"], "seconds": 1e18 / bill["gpu_hours"] / 3600}
    [(name, amount)] = named
    if buys.get(name) is None:
        raise ValueError(f"{name} need a gpu: choose {', '.join(tables()['hardware'])}")
    return positive("the budget in FLOPs", positive(name, amount) * buys[name])


def plan(flops=None, dollars=None, seconds=None, gpu=None, flops_per_second=None, config=None,
         vocab_size=None, context=None, memory_gb=None, law=None, **given):
    """Return what a budget should train, and with a gpu its bill. The budget: flops, or dollars on
    a gpu, or seconds on a gpu or at the flops_per_second that training reaches here. Unless given,
    the law is the nearest, the config its best, vocab_size and context (of a row) the law's."""
    flops = budget_flops(dict(flops=flops, dollars=dollars, seconds=seconds), flops_per_second, gpu,
                         **given)
    law = law or min(laws(), key=lambda law: max(
        0, math.log(law.least / flops), math.log(flops / law.most)))  # how far out of its range
    context = law.context if context is None else context
    vocab_size = law.vocab_size if vocab_size is None else vocab_size
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
