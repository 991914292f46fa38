"""What should a small budget train? The best shape, learning rate and batch on our own stories.

    make runs/tiny/tokens/manifest.json                      # the default corpus and tokenizer
    python tutorials/experiments/scaling_sweep.py            # all runs that the .json lacks
    python tutorials/experiments/scaling_sweep.py --runs 0   # only the tables and the law

At each of four budgets (FLOPs of training, head included) models are trained whole, with the
settings TRAINING below, and scored on the held-out stories. A search walks along three ladders
(width, learning rate, rows of a batch; a rung is about a doubling of compute, rate or batch) until
every neighbour of the best point is worse. Through the best point and its two neighbours on a
ladder goes a parabola in the logarithms; its lowest point is the optimum. A straight line through
the optima of all budgets is the law, coefficient·C^exponent, where C is the FLOPs of the layers
alone, as in DeepSeek LLM (arXiv 2401.02954, §3). It is the first in lab/laws.json. At the largest
budget only the width is searched; rate and batch are those of the law so far, on the nearest rung.
One thread, seed 0, about half an hour on one core; results go to scaling_sweep.json one by one. The
stored ones are of 14,000 to 20,000 stories of a plainer grammar, whose floor was 0.099 bits a byte."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import numpy as np

from nanoseek.cost import flops_per_token
from nanoseek.data import read_manifest
from nanoseek.lab.planner import planned_shape
from nanoseek.model import ModelConfig
from nanoseek.train import TrainConfig, train

BUDGETS = (3e11, 1.2e12, 4.8e12, 1.92e13)  # FLOPs; the tiny preset's run is 4.2e13
VOCAB, ROW = 4096, 256
LADDERS = {"hidden_size": (16, 32, 48, 64, 96, 128, 192, 256),
           "learning_rate": (6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
           "rows": (1, 2, 4, 8, 16, 32)}
START = (32, 5e-3, 2)
LAW = ("flops_per_token", "learning_rate", "batch_tokens")
TRAINING = dict(row_length=ROW, optimizer="muon", schedule="linear", embedding_factor=5.0,
                beta2=0.95, weights="stories_en=0.475,stories_zh=0.475,python_docs=0.05",
                precision="fp32", threads=1, seed=0)
SETUP = {"budgets": BUDGETS, "vocab_size": VOCAB, **TRAINING}
RESULTS = HERE / "scaling_sweep.json"


def point(result):
    return tuple(result[name] for name in LADDERS)


def flops(hidden):
    """Return the FLOPs per token of (the layers, the whole model) at a width."""
    each = flops_per_token(planned_shape(hidden, VOCAB, ROW), ROW)
    return each["total"] - each["head"], each["total"]


def run(budget, hidden, rate, rows, tokens):
    """Train and score once; return the result, fit for JSON."""
    steps = max(2, round(budget / flops(hidden)[1] / rows / ROW))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(out=folder, tokens=str(tokens), steps=steps, batch_size=rows,
                             learning_rate=rate, warmup_steps=steps // 20, eval_every=steps,
                             save_every=steps, keep=1, **TRAINING,
                             model=ModelConfig(**planned_shape(hidden, VOCAB, ROW)))
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            if train(config) is None:
                raise KeyboardInterrupt
        tag = json.loads((pathlib.Path(folder) / "cost.json").read_text("utf-8"))
    bits = tag["bits_per_byte"]
    return {"budget": budget, "hidden_size": hidden, "learning_rate": rate, "rows": rows,
            "steps": steps,
            "bits_per_byte": round((bits["stories_en"] + bits["stories_zh"]) / 2, 5)}


def best(results, budget):
    """Return the best result of a budget, or None."""
    return min((r for r in results if r["budget"] == budget), default=None,
               key=lambda r: r["bits_per_byte"])


def neighbours(where, axis):
    """Return the points one rung below and above on a ladder; None beyond its ends."""
    ladder, place = LADDERS[axis], list(LADDERS).index(axis)
    rung = ladder.index(where[place])
    return [(*where[:place], ladder[n], *where[place + 1:]) if 0 <= n < len(ladder) else None
            for n in (rung - 1, rung + 1)]


def start(results, budget):
    """Return where the search of a budget begins: at the law of the budgets below it."""
    law = fit([r for r in results if r["budget"] < budget])
    if law is None:
        below = [best(results, b) for b in BUDGETS if b < budget and best(results, b)]
        return point(below[-1]) if below else START
    wanted = [math.exp(np.polyval(line, math.log(budget / 2))) for line in law.values()]
    widths = {flops(hidden)[0]: hidden for hidden in LADDERS["hidden_size"]}
    wanted[2] /= ROW
    rungs = [min(ladder, key=lambda rung: abs(math.log(rung / value))) for ladder, value in
             zip((widths, LADDERS["learning_rate"], LADDERS["rows"]), wanted)]
    return widths[rungs[0]], *rungs[1:]


def missing(results, budget):
    """Return the points that the search of a budget lacks as far as one can see now."""
    here = best(results, budget)
    if here is None:
        return [start(results, budget)]
    axes = ("hidden_size",) if budget == BUDGETS[-1] else ("learning_rate", "hidden_size", "rows")
    done = {point(r) for r in results if r["budget"] == budget}
    return [p for axis in axes for p in reversed(neighbours(point(here), axis))
            if p and p not in done]


def optimum(results, budget, axis):
    """Return the lowest point on a ladder, of width as FLOPs per token of the layers; None unless
    both neighbours of the best point are there."""
    here = best(results, budget)
    found = {point(r): r["bits_per_byte"] for r in results if r["budget"] == budget}
    if here is None or not all(p in found for p in neighbours(point(here), axis)):
        return None
    place, (low, high) = list(LADDERS).index(axis), neighbours(point(here), axis)
    points = [low, point(here), high]
    values = [flops(p[place])[0] if axis == "hidden_size" else p[place] for p in points]
    a, b, _ = np.polyfit(np.log(values), [found[p] for p in points], 2)
    return math.exp(-b / 2 / a)


def optima(results):
    """Return a row a budget that has results: {"budget", "compute", "flops_per_token",
    "learning_rate", "batch_tokens"}, compute that of the layers; None what was not searched."""
    rows = []
    for budget in BUDGETS:
        layers, rate, batch = (optimum(results, budget, axis) for axis in LADDERS)
        if (layers, rate, batch) != (None, None, None):
            one, whole = zip(*map(flops, LADDERS["hidden_size"]))
            width = layers or flops(best(results, budget)["hidden_size"])[0]
            share = np.interp(math.log(width), np.log(one), np.divide(one, whole))
            rows.append({"budget": budget, "compute": budget * float(share),
                         "flops_per_token": layers, "learning_rate": rate,
                         "batch_tokens": batch and batch * ROW})
    return rows


def fit(results):
    """Return {name: (exponent, logarithm of the coefficient)} of the law, or None."""
    law, rows = {}, optima(results)
    for name in LAW:
        known = [(r["compute"], r[name]) for r in rows if r[name] is not None]
        if len(known) < 2:
            return None
        law[name] = np.polyfit(*np.log(known).T, 1)
    return law


def load(path=RESULTS):
    """Return the results so far; refuse those of another set-up."""
    if not path.exists():
        return []
    stored = json.loads(path.read_text("utf-8"))
    if stored["setup"] != json.loads(json.dumps(SETUP)):
        sys.exit(f"{path} is of another set-up: move it away")
    return stored["results"]


def store(results, path=RESULTS):
    part = path.with_suffix(".writing")
    rows = ",\n".join(json.dumps(result) for result in results)
    part.write_text(f'{{"setup": {json.dumps(SETUP)},\n"results": [\n{rows}\n]}}\n', "utf-8")
    os.replace(part, path)


def minutes_left(results, spent, done):
    """Return about how long the rest takes, by the pace so far: at least 7 runs a new budget."""
    left = sum(budget * max(len(missing(results, budget)),
                            0 if best(results, budget) else 3 if budget == BUDGETS[-1] else 7)
               for budget in BUDGETS)
    return left * spent / done / 60


def report(results):
    print("budget     width  layers   rate     rows   steps  bits/byte")
    for r in sorted(results, key=lambda r: (r["budget"], r["bits_per_byte"])):
        layers = planned_shape(r["hidden_size"], VOCAB, ROW)["num_hidden_layers"]
        mark = "  best" if r == best(results, r["budget"]) else ""
        print(f"{r['budget']:.1e}  {r['hidden_size']:>6}  {layers:>6}  {r['learning_rate']:<8.4g} "
              f"{r['rows']:>4}  {r['steps']:>6}  {r['bits_per_byte']:>9.4f}{mark}")
    print("\nthe optima   C (layers)   FLOPs/token   learning rate   batch tokens")
    for row in optima(results):
        layers, rate, batch = (f"{row[key]:.3g}" if row[key] else "-" for key in LAW)
        print(f"{row['budget']:.1e}  {row['compute']:>13.3g}  {layers:>12}"
              f"  {rate:>14}  {batch:>13}")
    for name, (exponent, logarithm) in (fit(results) or {}).items():
        print(f"{name} = ({math.exp(logarithm):.4g}, {exponent:.4f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="at most so many runs (default: all missing)")
    parser.add_argument("--tokens", default="runs/tiny/tokens", help="of the default recipe")
    args = parser.parse_args()
    results, spent, done = load(), 0.0, 0.0
    if args.runs != 0 and read_manifest(args.tokens)["vocab_size"] != VOCAB:
        sys.exit(f"{args.tokens} is not of the default recipe: its vocabulary is not {VOCAB}")
    while args.runs is None or args.runs > 0:
        waiting = [(budget, p) for budget in BUDGETS for p in missing(results, budget)]
        if not waiting:
            break
        began, (budget, where) = time.perf_counter(), waiting[0]
        results.append(run(budget, *where, args.tokens))
        store(results)
        spent, done = spent + time.perf_counter() - began, done + budget
        print(f"{results[-1]}  about {minutes_left(results, spent, done):.0f} min left", flush=True)
        args.runs = args.runs and args.runs - 1
    report(results)


if __name__ == "__main__":
    main()
