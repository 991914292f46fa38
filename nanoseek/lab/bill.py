"""The bill in words: what `python -m nanoseek.cost` prints, and plans for this very machine.

    python -m nanoseek.cost runs/tiny                  # the price tag that a run left
    python -m nanoseek.cost plan --minutes 3           # measures, plans, prints a command to type

All sums are those of cost.py and planner.py; here they are laid out. Only a plan in minutes
computes: it trains the planned model for a few seconds, since what a shape reaches on a machine
decides how large it should be. Torch, slow to import, is imported where it is needed.
"""

import contextlib
import io
import math
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time

from nanoseek.cli import Parser
from nanoseek.cost import (ASSUMED, CONVENTION, columns, cost, flops_per_token, format_price_tag,
                           measure_ceiling, positive, show, tables)
from nanoseek.lab.planner import LAW_TINY, plan

STORY_WEIGHTS = {"stories_en": 0.52, "stories_zh": 0.43, "python_docs": 0.05}  # the Makefile's
START_SECONDS = 8.0  # of a run before its first step and for its samples: 6 measured, and some
MEASURED_FLOPS = 1e11  # of a step that is measured, where one row has no more: about a second

USAGE = """Print what a model or a run costs.

  runs/tiny                                  the price tag that a run left
  deepseek-llm-7b --gpu H800 --tokens 2e12   a preset, or the path of a config.json
  plan --dollars 100 --gpu H100              what to train; also --flops 1e18, --minutes 10
  calibrate, claims                          published bills and chips; claims and the record"""


def _parser(command=""):
    parser = Parser(f"nanoseek.cost{command}", USAGE)
    for name in ASSUMED:
        parser.add_argument(f"--{name}", type=float, help="replaces what is assumed")
    parser.add_argument("--gpu", help="a chip of cost_tables.json, such as H100")
    parser.add_argument("--mfu", type=float, help="share of the peak that is reached, such as 0.4")
    parser.add_argument("--context", type=int, help="length of a row")
    return parser


# --- What a run or a model costs ----------------------------------------------------------------

def format_tag(path):
    """Return the price tag in a run's cost.json as text; raise ValueError for what is none."""
    from nanoseek.checkpoint import read_json
    tag = read_json(path)
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        if {"flops", "seconds", "convention", "assumptions"} <= tag.keys():
            return format_price_tag(tag)
    raise ValueError(f"{path} is not a price tag: finish the run again")


def find_config(what):
    """Return the config of a preset, a config.json, or a folder that holds one."""
    from nanoseek.checkpoint import read_json
    from nanoseek.model import PRESETS
    path = pathlib.Path(what)
    if what in PRESETS:
        return PRESETS[what]
    if (path / "log.jsonl").is_file():
        raise ValueError(f"{what} is a run that has not ended: it gets its price tag at its end")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{what} is neither a run, nor a config.json, nor a preset: choose "
                         f"{', '.join(PRESETS)}")
    return read_json(path)


def _parts(title, parts, unit, *names):
    return (title, show(parts["total"], unit), " + ".join(
        f"{name} {show(parts[name], unit)}" for name in names if parts[name]))


def format_breakdown(bill, batch, precision):
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
    parser = _parser()
    parser.add_argument("what", help="a run's folder, a config.json, or a preset")
    parser.add_argument("--tokens", type=float, help="how many to train on, such as 2e12")
    parser.add_argument("--batch", type=int, default=1, help="rows at once, for the memory")
    parser.add_argument("--precision", default="bf16", help="bf16, fp16 or fp32")
    parser.add_argument("--active_parameters", type=float, help="of a mixture of experts")
    given = vars(parser.parse_args(argv))
    what = given["what"]
    tag = pathlib.Path(what, "cost.json")
    if tag.is_file():
        if given != vars(parser.parse_args([what])):
            raise ValueError(f"{what} has a price tag, which was measured: give no flags with it")
        return print(format_tag(tag))
    del given["what"]
    bill = cost(find_config(what), **given)
    print(format_breakdown(bill, given["batch"], given["precision"]))
    for shown in ("context", "parameters"):
        bill.pop(shown, None)
    if "flops" in bill:
        print(format_price_tag(bill))


# --- Published bills, and claims ----------------------------------------------------------------

def calibrate():
    """Convert the published bills to one convention; return each with what follows from it.

    "flops"; "ratio" of the computed to the published FLOPs, both without attention; "mfu" that
    the GPU-hours imply; for dense models "predicted_hours" from the median MFU of the other
    dense models on the chip, and its "error". None where it cannot be known.
    """
    bills, hardware = tables()["bills"], tables()["hardware"]
    for bill in bills:
        each = flops_per_token(bill["config"], bill["context"], bill.get("active_parameters"))
        plain, published = each["total"] - each["attention"], bill.get("published_flops")
        bill.update(flops=each["total"] * bill["tokens"], mfu=None, predicted_hours=None,
                    error=None, ratio=published and plain * bill["tokens"] / published)
        if bill["gpu_hours"]:
            peak = hardware[bill["chip"]]["tflops"] * 1e12
            bill["mfu"] = bill["flops"] / (bill["gpu_hours"] * 3600 * peak)
    dense = [bill for bill in bills if bill["mfu"] and "active_parameters" not in bill]
    for bill in dense:
        others = [other["mfu"] for other in dense
                  if other["chip"] == bill["chip"] and other is not bill]
        if others:
            bill["error"] = bill["mfu"] / statistics.median(others) - 1
            bill["predicted_hours"] = bill["gpu_hours"] * (1 + bill["error"])
    return bills


def _main_calibrate(argv):
    Parser("nanoseek.cost calibrate", USAGE).parse_args(argv)
    known, bills = tables(), calibrate()
    chips = [[name, *chip.values()] for name, chip in known["hardware"].items()]
    print(columns([["chip", "TFLOP/s", "in", "watts", "$/hour", "GB", "source"], *(
        ["-" if value is None else str(value) for value in chip] for chip in chips)]) + "\n")
    forms = {"model": "{}", "chip": "{}", "tokens": "{:.3g}", "flops": "{:.3g}", "ratio": "{:.1%}",
             "gpu_hours": "{:,.0f}", "mfu": "{:.1%}", "predicted_hours": "{:,.0f}",
             "error": "{:+.0%}", "scope": "{}", "source": "{}"}
    print(columns([["published bill", "chip", "tokens", "FLOPs", "/ published", "GPU-hours", "MFU",
                    "predicted", "error", "scope of the hours", "source"], *(
        ["-" if bill[key] is None else form.format(bill[key]) for key, form in forms.items()]
        for bill in bills)]))
    errors = [abs(bill["error"]) for bill in bills if bill["error"] is not None]
    print(f"""
FLOPs        {CONVENTION}
/ published  our FLOPs without attention, over those that the source gives
MFU          FLOPs / (GPU-hours x TFLOP/s, the published peak of dense matrix products)
predicted    hours at the median MFU of the other dense models on the chip; of {len(errors)} errors
             half are within {statistics.median(errors):.0%}, the largest is {max(errors):.0%}
source       {known['marks']} (shown as -)""")


def _main_claims(argv):
    Parser("nanoseek.cost claims", USAGE).parse_args(argv)
    print("What is often said of DeepSeek, and the record [source]")
    for row in tables()["claims"]:
        print(f"\n{row['claim']}?\n    {row['record']} [{row['source']}]")
    print(f"\n{tables()['marks'].split(';')[0]}")


# --- A plan, if need be for this machine --------------------------------------------------------

def measure_training(planned, data, seconds=4.0):
    """Return (the FLOP/s that training of the planned model reaches here, what it chose by
    measurement: {"threads", "precision"}). It takes real steps, on the tokens in `data`."""
    from nanoseek.fast import speed_up
    from nanoseek.fast.onednn import use_exact_onednn
    from nanoseek.model import ModelConfig
    from nanoseek.scale.run import Run
    from nanoseek.train import TrainConfig, train_step
    if planned["rows_at_once"] is None:
        raise ValueError(f"{planned['warnings'][-1]}, or plan less")
    use_exact_onednn()
    context = planned["context"]
    row = flops_per_token(planned["config"], context)["total"] * context
    rows = max(1, min(planned["rows_at_once"], int(MEASURED_FLOPS / row)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, \
            contextlib.redirect_stdout(io.StringIO()):
        run = Run(TrainConfig(out=folder, tokens=data, batch_size=rows, row_length=context,
                              optimizer=planned["recipe"]["optimizer"],
                              activation_checkpointing=planned["checkpointing"],
                              model=ModelConfig(**planned["config"])), False, speed_up)
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            train_step(run)
            times.append(time.perf_counter() - began)
    speed = row * rows / statistics.mean(times[1:])  # the first warms up
    print(f"measured: training {planned['config']['hidden_size']} wide reaches "
          f"{show(speed, 'FLOP/s')} here", file=sys.stderr)
    return speed, run.choices


def plan_here(given, data, held_out):
    """Return (the plan for given["seconds"] on this machine, the choices of train).

    held_out: {source: its entry in the manifest of `data`}. What a shape reaches decides how large
    it should be, so a first guess is measured, then the shape that it leads to.
    """
    counts = [entry["tokens"] for entry in held_out.values()]
    scored = sum(count + 2 * min(count, 8192) for count in counts)  # in all, and in two quick looks
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
            speed, chosen = measure_training(planned, data)
            forward = flops_per_token(planned["config"], planned["context"])["forward"]
            outside = START_SECONDS + scored * forward / speed
    return {**planned, "seconds": whole}, chosen


def train_command(planned, data, out, chosen):
    """Return the command line that trains a plan."""
    steps = planned["steps"]
    flags = {**planned["config"], "row_length": planned["context"], "steps": steps,
             "batch_size": planned["rows"],
             "accumulation": planned["rows"] // (planned["rows_at_once"] or 1),
             "activation_checkpointing": planned["checkpointing"], **planned["recipe"],
             "learning_rate": f"{planned['learning_rate']:.2e}",
             "warmup_steps": min(2000, steps // 20),  # 2000: DeepSeek LLM §2.3
             "eval_every": math.ceil(steps / 2), "save_every": steps, **chosen,
             "tokens": data, "out": out}
    flags.pop("vocab_size")  # train takes it from the tokens
    return "python -m nanoseek.train " + " ".join(
        f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())


def _main_plan(argv):
    parser = _parser(" plan")
    for name in ("flops", "dollars", "minutes", "memory_gb"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--extrapolate", action="store_true", help="plan outside the fitted range")
    parser.add_argument("--tokens", default="runs/tiny/tokens", help="folder of token shards")
    parser.add_argument("--out", default="runs/plan", help="folder of the planned run")
    given = vars(parser.parse_args(argv))
    data, out, minutes = given.pop("tokens"), given.pop("out"), given.pop("minutes")
    given["seconds"] = None if minutes is None else 60 * positive("minutes", minutes)
    splits = {"train": {}, "held_out": {}}
    if os.path.isdir(data):
        from nanoseek.data import read_manifest
        manifest = read_manifest(data)
        splits, given["vocab_size"] = manifest["splits"], manifest["vocab_size"]
    if given["gpu"] is None and given["memory_gb"] is None and hasattr(os, "sysconf"):
        given["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if given["seconds"] and not any(given[name] for name in ("gpu", "flops", "dollars")):
        planned, chosen = plan_here(given, data, splits["held_out"])
    else:
        planned, chosen = plan(**given), {}
    print_plan(planned, data, splits["train"])
    if splits["train"].keys() == STORY_WEIGHTS.keys() and planned["law"] == LAW_TINY.source:
        chosen["weights"] = ",".join(f"{name}={share}" for name, share in STORY_WEIGHTS.items())
    print(train_command(planned, data, out, chosen))


def print_plan(planned, data, train):
    """Print a plan and its warnings; train: {source: its entry in the manifest of `data`}."""
    shape = planned["config"]
    print(format_price_tag(planned, [
        ("law", planned["law"]),
        ("shape", f"{shape['num_hidden_layers']} layers, {shape['hidden_size']} wide, "
                  f"{shape['num_attention_heads']} heads, vocabulary {shape['vocab_size']}"),
        ("learning rate", f"{planned['learning_rate']:.2e}, {planned['recipe']['optimizer']}"),
        ("batch", f"{show(planned['batch_tokens'])} tokens by the law: {planned['rows']} rows, "
                  f"{planned['rows_at_once']} at once, {planned['steps']} steps"),
        ("memory", f"{show(planned['memory']['total'], 'B')} of tensors in "
                   f"{planned['memory_limit'] / 1e9:.3g} GB, "
                   f"checkpointing {planned['checkpointing']}")]))
    warnings = [*planned["warnings"]]
    times = planned["tokens"] / sum(entry["tokens"] for entry in train.values()) if train else 0
    if not train:
        warnings.append(f"{data} is not there yet: the command reads it")
    elif times > 4:
        warnings.append(f"the plan reads {data} {times:,.0f} times; after about 4, text that is "
                        "read again teaches less (arXiv 2305.16264): name more with --tokens")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    commands = {"plan": _main_plan, "calibrate": _main_calibrate, "claims": _main_claims}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return _main_price(argv)
