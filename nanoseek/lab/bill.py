"""The bill in words: what `python -m nanoseek.cost` prints, and plans for this very machine.

    python -m nanoseek.cost runs/tiny                  # the price tag that a run left
    python -m nanoseek.cost plan --minutes 3           # measures, plans, prints a command to type

All sums are cost.py's; here they are laid out. Only a plan in minutes computes: it trains the
planned model for a few seconds, since what a shape reaches on a machine decides how large it
should be. What needs torch is imported where it is needed: a bill need not wait for it.
"""

import dataclasses
import math
import os
import shlex
import statistics
import sys
import time

from nanoseek.cli import Parser
from nanoseek.cost import (CONVENTION, LABELS, LAW_TINY, Assumptions, calibrate, columns, cost,
                           flops_per_token, format_assumptions, format_price_tag, labelled,
                           measure_ceiling, plan, positive, read_json, show, tables)

STORY_WEIGHTS = {"stories_en": 0.52, "stories_zh": 0.43, "python_docs": 0.05}  # the Makefile's
START_SECONDS = 8.0  # of a run before its first step and for its samples: 6 measured, and some
MEASURED_FLOPS = 1e11  # of a step that is measured, where one row has no more: about a second

USAGE = """Print what a model or a run costs.

  runs/tiny                                  the price tag that a run left
  deepseek-llm-7b --gpu H800 --tokens 2e12   a preset, or the path of a config.json
  plan --dollars 100 --gpu H100              what to train; also --flops 1e18, --minutes 10
  compare runs/a runs/b                      two runs side by side
  calibrate, claims                          published bills and chips; claims and the record"""


# --- What a model, a run, a published bill costs -------------------------------------------------

def _read_tag(run):
    path = os.path.join(run, "cost.json")
    if not os.path.isfile(path):
        raise ValueError(f"{run} has no cost.json: a run writes it at its end")
    tag = read_json(path)
    needed = [tag.get(key) for key in ("flops", "seconds", "convention", "assumptions")]
    numbers = [tag[key] for key, *_ in LABELS if tag.get(key) is not None]
    if None in needed or not isinstance(tag["assumptions"], dict) \
            or any(type(number) not in (int, float) for number in numbers):
        raise ValueError(f"{path} is not a price tag: finish the run again")
    return tag


def _find_config(what):
    """Return the config of a preset, a config.json, or a folder that holds one."""
    from nanoseek.model import PRESETS
    path = os.path.join(what, "config.json") if os.path.isdir(what) else what
    if what in PRESETS:
        return PRESETS[what]
    if os.path.isfile(os.path.join(what, "log.jsonl")):
        raise ValueError(f"{what} is a run that has not ended: it gets its price tag at its end")
    if not os.path.isfile(path):
        raise ValueError(f"{what} is neither a run, nor a config.json, nor a preset: choose "
                         f"{', '.join(PRESETS)}")
    return read_json(path)


def _parser(name):
    parser = Parser(f"nanoseek.cost{name}", USAGE)
    for field in dataclasses.fields(Assumptions):
        parser.add_argument(f"--{field.name}", type=float, help="replaces what is assumed")
    parser.add_argument("--gpu", help="a chip of cost_tables.json, such as H100")
    parser.add_argument("--mfu", type=float, help="share of the peak that is reached, such as 0.4")
    parser.add_argument("--context", type=int, help="length of a row")
    return parser


def _parts(title, parts, unit, *names):
    return (title, show(parts["total"], unit), " + ".join(
        f"{name} {show(parts[name], unit)}" for name in names if parts[name]))


def _breakdown(bill, batch, precision):
    """Return what a config costs by part, as a table."""
    each = bill["flops_per_token"]
    rows = [("row", f"{bill['context']:,} tokens", ""),
            _parts("training, a token", each, "FLOP", "matrices", "attention", "head"),
            _parts("  the same by pass", each, "FLOP", "forward", "backward"),
            ("  full checkpointing adds", show(each["recomputation"], "FLOP"), "")]
    if "memory" in bill:
        rows += [_parts("parameters", bill["parameters"], "", "embedding", "attention", "mlp",
                        "norms", "head"),
                 ("memory of training", "", f"{batch} row(s) at once, {precision}, AdamW")]
        rows += [_parts(f"  checkpointing {mode}", parts, "B", "weights", "gradients",
                        "optimizer", "weight_copies", "activations", "working")
                 for mode, parts in bill["memory"].items()]
        rows.append(("KV cache to generate", show(bill["memory"]["none"]["kv_cache"], "B"), ""))
    return columns(rows)


def _main_price(argv):
    parser = _parser("")
    parser.add_argument("what", help="a run's folder, a config.json, or a preset")
    parser.add_argument("--tokens", type=float, help="how many to train on, such as 2e12")
    parser.add_argument("--batch", type=int, default=1, help="rows at once, for the memory")
    parser.add_argument("--precision", default="bf16", help="bf16, fp16 or fp32")
    parser.add_argument("--active_parameters", type=float, help="of a mixture of experts")
    given = vars(parser.parse_args(argv))
    what = given["what"]
    if os.path.isfile(os.path.join(what, "cost.json")):
        if given != vars(parser.parse_args([what])):
            raise ValueError(f"{what} has a price tag, which was measured: give no flags with it")
        return print(format_price_tag(_read_tag(what)))
    del given["what"]
    bill = cost(_find_config(what), **given)
    print(_breakdown(bill, given["batch"], given["precision"]))
    bill = {key: value for key, value in bill.items() if key not in ("context", "parameters")}
    if "flops" in bill:
        print(format_price_tag(bill) if "gpu" in bill else columns(labelled(bill)))


def _main_compare(argv):
    parser = Parser("nanoseek.cost compare", USAGE)
    parser.add_argument("runs", nargs=2)
    runs = parser.parse_args(argv).runs
    tags = [_read_tag(run) for run in runs]
    left, right = (dict(labelled(tag)) for tag in tags)
    ratios = {name: f"{tags[1][key] / tags[0][key]:.2f}x" for key, name, _ in LABELS
              if all(tag.get(key) for tag in tags)}
    print(columns([("", *runs, "second / first")] + [
        (name, left.get(name, "-"), right.get(name, "-"), ratios.get(name, ""))
        for name in {**left, **right}]))


BILL_COLUMNS = (  # of `calibrate`: key, heading, format
    ("model", "published bill", "{}"), ("chip", "chip", "{}"), ("tokens", "tokens", "{:.3g}"),
    ("flops", "FLOPs", "{:.3g}"), ("ratio", "/ published", "{:.1%}"),
    ("gpu_hours", "GPU-hours", "{:,.0f}"), ("mfu", "MFU", "{:.1%}"),
    ("predicted_hours", "predicted", "{:,.0f}"), ("error", "error", "{:+.0%}"),
    ("scope", "scope of the hours", "{}"), ("source", "source", "{}"))


def _main_calibrate(argv):
    _parser(" calibrate").parse_args(argv)
    data, bills = tables(), calibrate()
    print(columns([["chip", "TFLOP/s", "in", "watts", "$/hour", "GB", "source"], *(
        [name, *("-" if value is None else str(value) for value in chip.values())]
        for name, chip in data["hardware"].items())]))
    print()
    print(columns([[heading for _, heading, _ in BILL_COLUMNS], *(
        ["-" if row[key] is None else form.format(row[key]) for key, _, form in BILL_COLUMNS]
        for row in bills)]))
    errors = [abs(row["error"]) for row in bills if row["error"] is not None]
    print(f"""
chips        TFLOP/s: the published peak of dense matrix products
FLOPs        {CONVENTION}
/ published  our FLOPs without attention, over those that the source gives
MFU          FLOPs / (GPU-hours x peak)
predicted    hours at the median MFU of the other dense models on the chip; of {len(errors)} errors
             half are within {statistics.median(errors):.0%}, the largest is {max(errors):.0%}
source       {data['marks']} (shown as -)""")


def _main_claims(argv):
    _parser(" claims").parse_args(argv)
    data = tables()
    print("What is often said of DeepSeek, and the record [source]")
    for row in data["claims"]:
        print(f"\n{row['claim']}?\n    {row['record']} [{row['source']}]")
    print(f"\n{data['marks'].split(';')[0]}")


# --- A plan, if need be for this machine ---------------------------------------------------------

def _measure_training(planned, seconds=4.0):
    """Return the FLOP/s that steps of the planned model reach here, optimizer included, and the
    choices of train, made as it makes them: {"threads", "precision"}."""
    import torch
    from nanoseek.scale.machine import autocast, choose_precision, choose_threads, pick_device
    from nanoseek.model import ModelConfig, Transformer, loss, use_exact_onednn
    from nanoseek.optim import build_optimizers
    use_exact_onednn()
    device, recipe = pick_device("auto"), planned["recipe"]
    context = planned["context"]
    row = flops_per_token(planned["config"], context)["total"] * context
    if planned["rows_at_once"] is None:
        raise ValueError(f"{planned['warnings'][-1]}, or plan less")
    rows = max(1, min(planned["rows_at_once"], int(MEASURED_FLOPS / row)))
    model = Transformer(ModelConfig(**planned["config"])).to(device)
    model.activation_checkpointing = planned["checkpointing"]
    chosen = {"threads": choose_threads(model, rows, context)[0]} if device.type == "cpu" else {}
    chosen["precision"] = choose_precision(model, device, rows, context)[0]
    optimizers = build_optimizers(model, recipe["optimizer"], 1e-4, 0.1)
    ids = torch.randint(planned["config"]["vocab_size"], (rows, context), device=device)
    documents = (torch.arange(context, device=device) // 64).expand(rows, context)  # as train masks
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        with autocast(device, chosen["precision"]):
            value = loss(model, ids, ids, documents)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        value.item()  # a GPU returns before it has computed
        times.append(time.perf_counter() - began)
    speed = row * rows / statistics.mean(times[1:])  # the first warms up
    print(f"measured: training {planned['config']['hidden_size']} wide reaches "
          f"{show(speed, 'FLOP/s')} here", file=sys.stderr)
    return speed, chosen


def _plan_here(given, held_out):
    """Return (the plan for given["seconds"] on this machine, the choices of train).

    held_out: {source: tokens} that the run will be scored on. What a shape reaches decides how
    large it should be, so a first guess is measured, then the shape that it leads to.
    """
    whole = given["seconds"]
    speed, outside, chosen = 0.3 * measure_ceiling(), 0.1 * whole, {}
    for kept in (False, False, True):
        if outside > whole / 2:
            raise ValueError(f"a budget of {whole:.0f} seconds is too small: a run takes about "
                             f"{outside:.0f} of them outside its steps")
        given |= {"seconds": whole - outside, "flops_per_second": speed,
                  "config": planned["config"] if kept else None}
        planned = plan(**given | {"extrapolate": True})
        if not kept:
            speed, chosen = _measure_training(planned)
            scored = sum(count + 2 * min(count, 8192) for count in held_out.values())  # as train
            forward = flops_per_token(planned["config"], planned["context"])["forward"]
            outside = START_SECONDS + scored * forward / speed
    return {**planned, "seconds": whole}, chosen


def _command(planned, data, out, more):
    """Return the command line that trains a plan."""
    steps = planned["steps"]
    flags = {**planned["config"], "row_length": planned["context"], "steps": steps,
             "batch_size": planned["rows"],
             "accumulation": planned["rows"] // (planned["rows_at_once"] or 1),
             "activation_checkpointing": planned["checkpointing"], **planned["recipe"],
             "learning_rate": f"{planned['learning_rate']:.2e}",
             "warmup_steps": min(2000, steps // 20),  # 2000: DeepSeek LLM §2.3
             "eval_every": math.ceil(steps / 2), "save_every": steps, **more,
             "tokens": data, "out": out}
    flags.pop("vocab_size")  # train takes it from the tokens
    return "python -m nanoseek.train " + " ".join(
        f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())


def _corpus(folder):
    """Return (vocabulary, {source: tokens} to train on, the same held out) of a token folder;
    (None, {}, {}) where there is none yet."""
    if not os.path.isdir(folder):
        return None, {}, {}
    from nanoseek.data import read_manifest
    manifest = read_manifest(folder)
    return (manifest["vocab_size"], *({source: entry["tokens"] for source, entry in part.items()}
                                      for part in manifest["splits"].values()))


def _warn_of_tokens(planned, data, count):
    if not count:
        return [f"{data} is not there yet: the command reads it"]
    times = planned["tokens"] / count
    return [f"the plan reads {data} {times:,.0f} times; after about 4, text that is read again "
            "teaches less (arXiv 2305.16264): name more with --tokens"] * (times > 4)


def _format_plan(planned):
    shape = planned["config"]
    return columns(labelled(planned) + [
        ("law", planned["law"]),
        ("shape", f"{shape['num_hidden_layers']} layers, {shape['hidden_size']} wide, "
                  f"{shape['num_attention_heads']} heads, vocabulary {shape['vocab_size']}"),
        ("learning rate", f"{planned['learning_rate']:.2e}, {planned['recipe']['optimizer']}"),
        ("batch", f"{show(planned['batch_tokens'])} tokens by the law: {planned['rows']} rows, "
                  f"{planned['rows_at_once']} at once, {planned['steps']} steps"),
        ("memory", f"{show(planned['memory']['total'], 'B')} of tensors in "
                   f"{planned['memory_limit'] / 1e9:.3g} GB, "
                   f"checkpointing {planned['checkpointing']}")])


def _main_plan(argv):
    parser = _parser(" plan")
    for name in ("flops", "dollars", "minutes", "memory_gb"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--vocab_size", type=int, help="(default: that of the tokens)")
    parser.add_argument("--extrapolate", action="store_true", help="plan outside the fitted range")
    parser.add_argument("--tokens", default="runs/tiny/tokens", help="folder of token shards")
    parser.add_argument("--out", default="runs/plan", help="folder of the planned run")
    given = vars(parser.parse_args(argv))
    data, out, minutes = given.pop("tokens"), given.pop("out"), given.pop("minutes")
    given["seconds"] = None if minutes is None else 60 * positive("minutes", minutes)
    vocabulary, train, held_out = _corpus(data)
    if given["vocab_size"] is None:
        given["vocab_size"] = vocabulary
    elif vocabulary not in (None, given["vocab_size"]):
        raise ValueError(f"vocab_size is {given['vocab_size']}, but {data} has a vocabulary of "
                         f"{vocabulary}: leave it out, or name other --tokens")
    if given["gpu"] is None and given["memory_gb"] is None and hasattr(os, "sysconf"):
        given["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if given["seconds"] and not any(given[name] for name in ("gpu", "flops", "dollars")):
        planned, chosen = _plan_here(given, held_out)
    else:
        planned, chosen = plan(**given), {}
    print(_format_plan(planned))
    if "assumptions" in planned:
        print(format_assumptions(planned))
    for warning in planned["warnings"] + _warn_of_tokens(planned, data, sum(train.values())):
        print(f"warning: {warning}", file=sys.stderr)
    if train.keys() == STORY_WEIGHTS.keys() and planned["law"] == LAW_TINY.source:
        chosen["weights"] = ",".join(f"{name}={share}" for name, share in STORY_WEIGHTS.items())
    print(_command(planned, data, out, chosen))


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    commands = {"plan": _main_plan, "compare": _main_compare, "calibrate": _main_calibrate,
                "claims": _main_claims}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return _main_price(argv)
