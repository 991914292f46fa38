"""What `python -m nanoseek.cost` prints: what a run or a config costs, what a budget should train.

    python -m nanoseek.cost runs/tiny                  # the price tag that a run left
    python -m nanoseek.cost plan --minutes 3           # measures, plans, prints a command"""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from itertools import takewhile

from nanoseek import cost
from nanoseek.checkpoint import read_json, trusting
from nanoseek.cli import Parser, say
from nanoseek.data import read_manifest
from nanoseek.deepseek.hugging_face import countable
from nanoseek.deepseek.presets import PRESETS
from nanoseek.lab.planner import plan
from nanoseek.lab.price_tag import columns, format_price_tag, show
from nanoseek.scale.machine import pick_device

GUESSED_MFU = 0.3  # what training may reach on a machine that has not been measured
TRIAL_SECONDS = 4.0  # of training, to measure it


def train_command(planned, data, out):
    """Return the words behind "python" with which train follows a plan."""
    steps, at_once = planned["steps"], planned["rows_at_once"] or 1
    flags = {**planned["config"], "row_length": planned["context"], "steps": steps,
             "batch_size": planned["rows"], "accumulation": planned["rows"] // at_once,
             "activation_checkpointing": planned["checkpointing"], **planned["recipe"],
             "learning_rate": f"{planned['learning_rate']:.2e}",
             "warmup_steps": min(2000, steps // 20),  # 2000: DeepSeek LLM §2.3
             "eval_every": (steps + 1) // 2, "save_every": 200, "tokens": data, "out": out}
    del flags["vocab_size"]  # train takes it from the tokens
    words = (word for name, value in flags.items() for word in (f"--{name}", str(value)))
    return ["-m", "nanoseek.train", *words]


def plan_here(given, data):
    """Return the plan for given["seconds"] on this machine. A guess of its speed decides the shape
    (near the best, quality hardly changes); a few steps of it tell how many fill the time."""
    say("measuring this machine")
    guess = GUESSED_MFU * cost.measure_ceiling(device=pick_device("auto").type)
    planned = plan(**given, flops_per_second=guess)
    if planned["rows_at_once"] is None:
        raise ValueError(f"{planned['warnings'][-1]}, or plan less")
    few = max(4, round(planned["steps"] * TRIAL_SECONDS / planned["seconds"]))
    with tempfile.TemporaryDirectory() as folder:
        words = train_command(planned | {"steps": few}, data, folder)
        if code := subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(code)  # it has said why
        reached = read_json(pathlib.Path(folder, "cost.json"))["flops_per_second"]
    given |= {name: planned[name] for name in ("config", "context")}
    return plan(**given, flops_per_second=reached)


def print_bill(bill):
    """Print what a config costs: its parts as a table, then the bill of its training."""
    counts, rows = [("training, a token", "FLOP", bill["flops_per_token"])], []
    if "memory" in bill:
        counts.append(("parameters", "", bill.pop("parameters")))
        counts += [(f"memory, checkpointing {mode}", "B", parts)
                   for mode, parts in bill["memory"].items()]
    for title, unit, parts in counts:
        added = takewhile(lambda name: name != "total", parts)  # what is behind it counts no more
        shown = (f"{name} {show(parts[name], unit)}" for name in added if parts[name])
        rows.append((title, show(parts["total"], unit), " + ".join(shown)))
    print(columns(rows))
    print(format_price_tag(bill))


def options(name, description):
    parser = Parser(name, description)
    parser.add_argument("--gpu", help="a chip of cost_tables.json, such as H100")
    parser.add_argument("--context", type=int, help="length of a row")
    for assumed in (*cost.ASSUMED, "mfu"):
        parser.add_argument(f"--{assumed}", type=float, help="replaces what is assumed")
    return parser


def print_plan(argv):
    """Print a plan, and the command that trains it."""
    parser = options("nanoseek.cost plan", "What a budget of dollars, minutes or FLOPs buys.")
    for name in ("flops", "dollars", "minutes", "memory_gb"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--tokens", default="runs/tiny/tokens", help="folder of token shards")
    given = vars(parser.parse_args(argv))
    data, minutes = given.pop("tokens"), given.pop("minutes")
    given["seconds"] = minutes and 60 * minutes
    here = minutes is not None and given["gpu"] is None
    if here or os.path.isdir(data):
        given["vocab_size"] = read_manifest(data)["vocab_size"]
    if given["gpu"] is None and given["memory_gb"] is None and hasattr(os, "sysconf"):
        given["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    planned = plan_here(given, data) if here else plan(**given)
    print(format_price_tag(planned, [("law", planned["law"])]))
    for warning in planned["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"python {shlex.join(train_command(planned, data, 'runs/plan'))}")


def main(argv=None):
    """Print what a run has cost, or what a config would; or else a plan."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["plan"]:
        return print_plan(argv[1:])
    parser = options("nanoseek.cost", "What a run has cost, or a config would; see also cost plan.")
    parser.add_argument("what", help="a run's folder, a config.json, or a preset")
    parser.add_argument("--tokens", type=float, help="how many to train on, such as 2e12")
    given = vars(parser.parse_args(argv))
    path = pathlib.Path(what := given.pop("what"))
    if (path / "cost.json").is_file():
        if len(argv) > 1:
            raise ValueError(f"{what} has a price tag, which was measured: give no flags with it")
        with trusting(path / "cost.json"):
            return print(format_price_tag(read_json(path / "cost.json")))
    path = path / "config.json" if path.is_dir() else path
    if what not in PRESETS and not path.is_file():
        raise ValueError(f"{what} is no finished run, config.json or preset ({', '.join(PRESETS)})")
    print_bill(cost.cost(PRESETS.get(what) or countable(read_json(path)), **given))
