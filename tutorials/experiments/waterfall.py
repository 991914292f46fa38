"""Which trick saved how much? What it costs to reach one quality, as tricks are added one by one.

    python tutorials/experiments/waterfall.py                # all runs that are missing, then report
    python tutorials/experiments/waterfall.py --quick        # one seed, no trick taken out again
    python tutorials/experiments/waterfall.py --later tiny   # DeepSeek's later tricks, or 10M
    python tutorials/experiments/waterfall.py --tune         # the learning rates below, as found
    python tutorials/experiments/waterfall.py --report FILE  # of stored results: table and picture
    python tutorials/experiments/waterfall.py --plain FOLDER # the baseline's model, for the arena

The quality is TARGET held-out bits per byte on clean stories; the corpus is a crawl of stories,
half of it dirt (`plant_dirt`). The plain baseline takes bytes as tokens, one document a row, padded
to the longest of its batch, multi-head attention, AdamW with a cosine, constant rows. TRICKS are
then added in this order, and the last, which saves memory and costs time, is shown as that. In the
full report every trick is also taken out alone from the recipe that has all the others: what a
trick saves depends on which are there already. LATER tricks, the parts of nanoseek/deepseek, are a
ladder of their own on top of the full recipe, for two sizes of the model.

Cost to reach: for each recipe and seed complete schedules are trained at horizons of 25·1.5^k
steps, until one misses the quality and the next reaches it; seconds, tokens and FLOPs are
interpolated between these two, in logarithm, linear in bits per byte. Seconds are those of the
processor in training on one core, which other programs disturb least, and what it takes to prepare
the corpus (training the tokenizer, curating, encoding); scoring is left out. One run a core at a
time. Results are kept run by run, so a stopped waterfall goes on where it was.
"""

import argparse
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

TRICKS = {  # in the order in which they are added: what each changes
    "BPE": "4,096 byte-pair tokens in place of bytes, rows of 256 in place of 1,024",
    "curation": "quality rules and deduplication take the dirt out",
    "packing": "documents laid end to end, masked from each other, in place of padding",
    "schedule": "the rate falls in a line to zero, not along a cosine to a tenth",
    "embedding rate": "the embeddings learn at a rate of their own, 2e-2",
    "Muon": "for the layers' matrices, in place of AdamW",
    "length ramp": "rows of a quarter, then of half the length in the first steps",
    "GQA": "two heads share keys and values",
    "bf16": "matrix products in bfloat16",
    "checkpointing": "layers computed again in the backward pass, not kept",
}
FULL = tuple(name for name in TRICKS if name != "checkpointing")
LATER = {  # DeepSeek's, on top of those
    "latent attention": "keys and values of all heads made from one vector, in place of GQA",
    "experts": "3 of 16 narrow MLPs for each token, and a shared one: as wide together as the MLP",
    "two tokens ahead": "a module behind the layers learns the token after the next",
    "sparse attention": "an indexer chooses the 64 keys that a token reads, of up to 256",
}
SIZES = {  # of the model, and of its parts
    "tiny": ({"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
              "num_attention_heads": 4}, (64, 64, 32, 16, 32), 88),
    "10M": ({"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8,
             "num_attention_heads": 10}, (128, 128, 32, 16, 32), 216),
}
NEED = {"latent attention": "sparse attention"}  # goes out with it
TARGET = 1.0  # bits per byte
POOL, HELD_OUT, DIRT = 3000, 100, 0.5  # stories in each language; share of the crawl
BATCH, ROW, BYTE_ROW = 2048, 256, 1024  # tokens in a step, in a row
RATES = {"AdamW": 2e-3, "Muon": 8e-3, "embedding rate": 2e-2}  # near the best of those --tune tries
TUNED = {"AdamW": (1e-3, 2e-3, 4e-3), "Muon": (4e-3, 8e-3, 1.6e-2),
         "embedding rate": (1e-2, 2e-2, 4e-2)}
SEEDS, LEAST_STEPS, GROWTH, HIGHEST = (0, 1), 25, 1.5, 15
FIRST_GUESS = {True: 60, False: 5000}  # steps, with BPE and without
ONE_SEED = 1.15  # of two seeds of one recipe, one cost up to 1.14 times the other
# Those that this process may use: in a container often not all.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SETUP = {"pool": POOL, "held_out": HELD_OUT, "dirt": DIRT, "batch": BATCH,
         "row_length": ROW, "rates": RATES}


def ladder(names=tuple(TRICKS)):
    """Return the rungs: (), then with one more trick each."""
    return [names[:count] for count in range(len(names) + 1)]


def without_each(full=FULL):
    """Return {trick: the full recipe without it}."""
    return {left_out: tuple(name for name in full if name not in (left_out, NEED.get(left_out)))
            for left_out in full}


def recipes_of(setup):
    """Return the rungs of stored results, their recipe with all tricks, {left out: the recipe
    without it}, and the cost that is compared: where all prepare the corpus alike, training."""
    names = tuple(name for name in TRICKS if name not in setup.get("left_out", ()))
    full = tuple(name for name in names if name in FULL)
    if "size" not in setup:
        return ladder(names), full, without_each(full), "total"
    whole = full + tuple(LATER)
    without = {name: tricks for name, tricks in without_each(whole).items() if name in LATER}
    return ladder(whole)[len(full):], whole, without, "seconds"


# --- one training ---------------------------------------------------------------------------------

def tokens_of(tricks, root):
    """Return the folder of a recipe's tokens: those of recipes that prepare the corpus alike."""
    return root / ("-".join(name for name in ("BPE", "curation") if name in tricks) or "plain")


def prepare(tricks, root):
    """Make the folder of a recipe's tokens unless it is there, and keep in it what that cost."""
    from dirt import story_documents, without_near
    from nanoseek.corpus import plant_dirt
    from nanoseek.curate import CurateConfig, curate
    from nanoseek.data import write_shards
    from nanoseek.fast.bpe import FastTokenizer
    from nanoseek.fast.pairs import find_near_duplicates
    folder = tokens_of(tricks, pathlib.Path(root))
    if (folder / "prepared.json").exists():
        return
    pool = story_documents(POOL, seed=4)
    crawl = plant_dirt(pool, 0, DIRT)[0]
    held_out = without_near(story_documents(HELD_OUT, seed=5), pool, 0.6)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    if "curation" in tricks:
        crawl = curate(crawl, CurateConfig(held_out=0), find_near_duplicates)[0]
    bpe = {"vocab_size": 4096, "max_token_length": 9} if "BPE" in tricks else {"vocab_size": 257}
    tokenizer = FastTokenizer.train([document["text"] for document in crawl], **bpe)
    tokenizer.save(folder / "tokenizer.json")
    write_shards(crawl + [document | {"split": "held_out"} for document in held_out],
                 tokenizer.encode_batch, folder / "tokens", tokenizer.vocab_size, tokenizer.eot_id,
                 folder / "tokenizer.json", batched=True)
    (folder / "prepared.json").write_text(json.dumps(
        {"seconds": time.process_time() - began, "documents": len(crawl)}))


def packed_rows(folder, count, lengths, seed):
    """Yield the arguments of `loss`, of `count` packed rows for each of `lengths`."""
    from nanoseek.data import Loader
    loader = Loader(folder / "tokens", count, max(lengths), seed=seed)
    for length in lengths:
        yield loader.next_batch(count, length)


def padded_rows(folder, count, lengths, seed):
    """Yield the arguments of `loss`, of `count` rows for each of `lengths`: one document a row, cut
    to that length, padded to the longest of the batch; the targets of padding are −100."""
    import numpy as np
    import torch
    from nanoseek.evaluate import held_out
    documents = [ids for source in held_out(folder / "tokens", split="train").values()
                 for ids in source]
    random, order = np.random.default_rng(seed), []
    for length in lengths:
        if len(order) < count:
            order = list(random.permutation(len(documents)))
        rows = [documents[order.pop()][:length + 1] for _ in range(count)]
        longest = max(map(len, rows)) - 1
        inputs = torch.zeros(count, longest, dtype=torch.long)
        targets = torch.full_like(inputs, -100)
        for n, ids in enumerate(rows):
            inputs[n, :len(ids) - 1] = torch.from_numpy(ids[:-1])
            targets[n, :len(ids) - 1] = torch.from_numpy(ids[1:])
        yield inputs, targets


def shape(tricks, vocab_size, row, size):
    """Return the ModelConfig of a recipe."""
    from nanoseek.deepseek.experts import Experts
    from nanoseek.deepseek.latent import Latent
    from nanoseek.deepseek.predict import MultiToken
    from nanoseek.deepseek.sparse import Sparse
    from nanoseek.model import ModelConfig
    widths, latent, narrow = SIZES[size]
    heads = widths["num_attention_heads"]
    kind = Sparse if "sparse attention" in tricks else Latent
    return ModelConfig(
        vocab_size, **widths, max_position_embeddings=row, tie_word_embeddings=False,
        num_key_value_heads=heads // 2 if "GQA" in tricks else heads,
        attention=kind(*latent) if "latent attention" in tricks else None,
        feed_forward=Experts(narrow, 16, 3) if "experts" in tricks else None,
        prediction=MultiToken() if "two tokens ahead" in tricks else None)


def train_once(tricks, steps, seed, folder, rates=None, keep=None, size="tiny"):
    """Train one complete schedule and score it; return what it cost and reached, fit for JSON.

    "positions" are what the layers computed, padding among them; "tokens" what the loss saw.
    keep: a folder for the model, which the arena can take.
    """
    import torch
    from nanoseek.checkpoint import save_model
    from nanoseek.cost import flops_per_token, memory
    from nanoseek.data import read_manifest
    from nanoseek.deepseek.experts import after_step
    from nanoseek.evaluate import held_out, nats
    from nanoseek.fast import speed_up
    from nanoseek.fast.onednn import use_exact_onednn
    from nanoseek.scale.machine import autocast
    from nanoseek.model import Transformer, loss
    from nanoseek.optim import build_optimizers, ramp_value, schedule_factor, set_learning_rate
    torch.manual_seed(seed)
    use_exact_onednn()
    folder = pathlib.Path(folder)
    manifest, row = read_manifest(folder / "tokens"), ROW if "BPE" in tricks else BYTE_ROW
    config = shape(tricks, manifest["vocab_size"], row, size)
    model = speed_up(Transformer(config)).train()
    model.activation_checkpointing = "full" if "checkpointing" in tricks else "none"
    ramp = [(row // 4, 0.2), (row // 2, 0.4)] if "length ramp" in tricks else []
    lengths = [ramp_value(ramp, step / steps, row) for step in range(steps)]
    rows = packed_rows if "packing" in tricks else padded_rows
    muon = "Muon" in tricks
    rates = RATES | (rates or {})
    rate = rates["Muon" if muon else "AdamW"]
    factor = rates["embedding rate"] / rate if "embedding rate" in tricks else 1.0
    optimizers = build_optimizers(model, "muon" if muon else "adamw", rate, 0.1, factor)
    schedule = "linear" if "schedule" in tricks else "cosine"
    positions = squares = tokens = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, wall = time.process_time(), time.perf_counter()
    for step, batch in enumerate(rows(folder, BATCH // row, lengths, seed)):
        set_learning_rate(optimizers, rate * schedule_factor(schedule, step, steps, 1 + steps // 20))
        with autocast(torch.device("cpu"), "bf16" if "bf16" in tricks else "fp32"):
            value = loss(model, *batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        after_step(model)
        positions += batch[0].numel()
        squares += batch[0].numel() * batch[0].shape[1]
        tokens += batch[0].numel() if "packing" in tricks else int((batch[1] >= 0).sum())
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    model.eval()
    if keep:
        save_model(model, keep, folder / "tokenizer.json")
    documents = held_out(folder / "tokens")
    scored = sum(entry["bytes"] for entry in manifest["splits"]["held_out"].values())
    bits = sum(nats(model, ids) for ids in documents.values()) / math.log(2) / scored
    return {"tricks": list(tricks), "steps": steps, "seed": seed, "bits_per_byte": bits,
            "seconds": seconds, "wall_seconds": wall, "positions": positions, "tokens": tokens,
            "flops": positions * flops_per_token(config, squares / positions)["total"],
            "peak_bytes": peak,
            "kv_bytes_per_token": memory(config, 1, row, "full")["kv_cache"] // row,
            "preparation_seconds": json.loads((folder / "prepared.json").read_text())["seconds"]}


def multiplies_bf16():
    """Return whether this processor is faster with it; some imitate it, and take hours here."""
    import torch
    from nanoseek.fast import speed_up
    from nanoseek.fast.onednn import use_exact_onednn
    from nanoseek.model import Transformer
    from nanoseek.scale.machine import choose_precision
    use_exact_onednn()
    model = speed_up(Transformer(shape(FULL, 4096, ROW, "tiny")).train())
    return choose_precision(model, torch.device("cpu"), BATCH // ROW, ROW)[0] == "bf16"


TASKS = {task.__name__: task for task in (prepare, train_once, multiplies_bf16)}


# --- many trainings -------------------------------------------------------------------------------

def machine():
    """Return what the results were measured on, in words."""
    import torch
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        name = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                    if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}"


class Results:
    """The runs so far, in a file that every new one is added to at once."""

    def __init__(self, path, setup):
        self.path, self.setup, self.lock, self.runs = path, setup, threading.Lock(), []
        self.machine = machine()
        if path.exists():
            stored = json.loads(path.read_text("utf-8"))
            if stored["setup"] != setup or stored["machine"] != self.machine:
                raise ValueError(f"{path} is of another set-up or machine: move it away, or name "
                                 "another --out")
            self.runs = stored["runs"]

    def find(self, tricks, steps, seed):
        return next((run for run in self.runs if (run["tricks"], run["steps"], run["seed"])
                     == (list(tricks), steps, seed)), None)

    def add(self, run):
        with self.lock:
            self.runs.append(run)
            rows = ",\n".join(json.dumps(run) for run in self.runs)
            part = self.path.with_suffix(".writing")
            part.write_text(f'{{"machine": {json.dumps(self.machine)},\n"target": {TARGET},\n'
                            f'"setup": {json.dumps(self.setup)},\n"runs": [\n{rows}\n]}}\n', "utf-8")
            os.replace(part, self.path)


def in_a_process(task, *arguments):
    """Return task(*arguments), called in a process of its own, whose memory and clock it has
    alone. The task is named, and the arguments are fit for JSON."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps((task, *arguments))],
                          stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ChildProcessError(f"a run failed: {arguments}")
    return json.loads(done.stdout)


def steps_at(k):
    return round(LEAST_STEPS * GROWTH ** k)


def search(known, train, guess):
    """Train at horizons until the target lies between two neighbours.

    known: {k: whether the target was reached there}; train(k) tells it of another; guess: the k to
    begin with where nothing is known.
    """
    missed = max((k for k, hit in known.items() if not hit), default=-1)
    reached = min((k for k, hit in known.items() if hit and k > missed), default=HIGHEST + 1)
    k, stride = guess, 1
    while reached - missed > 1:
        if missed >= 0 and reached <= HIGHEST:
            k = (missed + reached) // 2
        elif missed >= 0 or reached <= HIGHEST:  # one bound only: go on in strides that double
            k = max(0, reached - stride) if missed < 0 else min(HIGHEST, missed + stride)
            stride *= 2
        if train(k):
            reached = k
        else:
            missed = k


def crossing(runs):
    """Return the interpolated cost to reach the target of one recipe and seed, or None."""
    runs = sorted(runs, key=lambda run: run["steps"])
    for before, after in zip(runs, runs[1:]):
        if before["bits_per_byte"] > TARGET >= after["bits_per_byte"]:
            share = ((before["bits_per_byte"] - TARGET)
                     / (before["bits_per_byte"] - after["bits_per_byte"]))
            found = {key: math.exp((1 - share) * math.log(before[key]) + share * math.log(after[key]))
                     for key in ("seconds", "tokens", "flops", "steps")}
            return found | {"peak_bytes": max(before["peak_bytes"], after["peak_bytes"]),
                            "preparation_seconds": after["preparation_seconds"],
                            "total": found["seconds"] + after["preparation_seconds"],
                            "kv_bytes_per_token": after["kv_bytes_per_token"]}
    return None


def summary(runs, tricks):
    """Return {key: (median, least, most) over the seeds} of a recipe's cost to reach, or None."""
    mine = [run for run in runs if run["tricks"] == list(tricks)]
    found = [cost for seed in {run["seed"] for run in mine}
             if (cost := crossing([run for run in mine if run["seed"] == seed]))]
    if not found:
        return None
    several = {key: [cost[key] for cost in found] for key in found[0]}
    return {key: (statistics.median(values), min(values), max(values))
            for key, values in several.items()}


def measure(results, plan, root):
    """Do what is missing of `plan`, [(tricks, seed)], one run a core; say what is left."""
    stored = HERE / results.path.name  # where crossings were found before, the search begins
    known = json.loads(stored.read_text("utf-8"))["runs"] if stored.exists() else []
    found = 0
    # The horizons on both sides of a crossing take about twice what the crossing does.
    expected = sum(2.1 * cost["seconds"][0] for tricks, _ in plan
                   if (cost := summary(known, tricks)))

    def guess(tricks):
        """Return the k, not a whole number, at which the crossing probably lies."""
        cost = summary(results.runs, tricks) or summary(known, tricks)
        steps = cost["steps"][0] if cost else FIRST_GUESS["BPE" in tricks]
        return min(HIGHEST - 1, max(0, math.log(steps / LEAST_STEPS, GROWTH)))

    def train(tricks, seed, k):
        """Train one; tell whether it reached the target."""
        run = in_a_process("train_once", tricks, steps_at(k), seed, str(tokens_of(tricks, root)),
                           None, None, results.setup.get("size", "tiny"))
        results.add(run)
        left = (expected - sum(run["seconds"] for run in results.runs)) / CORES / 60
        print(f"{run['bits_per_byte']:.3f} bits/byte in {run['seconds']:>5.1f} s, "
              f"{run['steps']:>4} steps, seed {run['seed']}: {name_of(run['tricks'])}"
              f"   [{found} of {len(plan)} found, about {max(1, left):.0f} min left]", flush=True)
        return run["bits_per_byte"] <= TARGET

    def one(entry):
        """Find one crossing, from what is known on."""
        nonlocal found
        tricks, seed = entry
        before = {k: run["bits_per_byte"] <= TARGET for k in range(HIGHEST + 1)
                  if (run := results.find(tricks, steps_at(k), seed))}
        search(before, lambda k: train(tricks, seed, k), round(guess(tricks)))
        found += 1
    for tricks in {tokens_of(tricks, root): tricks for tricks, _ in plan}.values():
        in_a_process("prepare", tricks, str(root))
    with concurrent.futures.ThreadPoolExecutor(CORES) as workers:
        # The slowest recipe's two likely horizons go side by side: one after the other they
        # would take longer than all the rest.
        slowest, low = plan[0], math.floor(guess(plan[0][0]))
        known_already = any((run["tricks"], run["seed"]) == (list(slowest[0]), slowest[1])
                            for run in results.runs)
        first = [] if known_already else [workers.submit(train, *slowest, k)
                                          for k in (low + 1, low)]
        rest = [workers.submit(one, entry) for entry in plan[1:]]
        try:
            for done in (*first, *rest):
                done.result()
        except BaseException:  # Ctrl-C, too: what has not begun must not begin
            workers.shutdown(wait=False, cancel_futures=True)
            raise
        one(slowest)


def tune(root):
    """Print what each learning rate reaches, the others left as they are."""
    tricks = ("BPE", "curation", "packing", "schedule")
    in_a_process("prepare", tricks, str(root))
    for name, more in (("AdamW", ()), ("embedding rate", ("embedding rate",)),
                       ("Muon", ("embedding rate", "Muon"))):
        for rate in TUNED[name]:
            run = in_a_process("train_once", tricks + more, 150, 0, str(tokens_of(tricks, root)),
                               {name: rate})
            print(f"{name:<14} {rate:<6g} {run['bits_per_byte']:.3f} bits/byte after "
                  f"{run['steps']} steps", flush=True)


# --- what they say --------------------------------------------------------------------------------

def name_of(tricks):
    """Name a recipe: by the trick added last, or by those that are left out."""
    if later := [name for name in tricks if name in LATER]:
        return f"all of these + {' + '.join(later)}"
    if tuple(tricks) not in ladder() and tricks != FULL:
        return f"all but {', '.join(name for name in FULL if name not in tricks)}"
    return f"+ {tricks[-1]}" if tricks else "plain baseline"


def verdict(before, after, key="total"):
    """Say what a trick did to the cost, given its summaries without and with it: saved or cost
    only where the ranges of the seeds do not meet; where one is of one seed, ONE_SEED apart."""
    ratio = before[key][0] / after[key][0]
    alone = any(cost[key][1] == cost[key][2] for cost in (before, after))
    apart = ONE_SEED if alone else 1
    if after[key][2] * apart < before[key][1]:
        return f"saved: {ratio:.2f}x as cheap"
    if after[key][1] > before[key][2] * apart:
        return f"cost: {1 / ratio:.2f}x as dear"
    return f"neutral: {ratio:.2f}x, " + ("less than one seed can tell" if alone
                                         else "within the seeds' range")


def rows_of(runs, setup=SETUP):
    """Return [(trick or None, its summary, verdict)] of the ladder, as far as it was measured."""
    rows, before = [], None
    rungs, _, _, key = recipes_of(setup)
    for tricks in rungs:
        after = summary(runs, tricks)
        if after is None:
            break
        rows.append((tricks[-1], after, verdict(before, after, key)) if before
                    else (None, after, ""))
        before = after
    return rows


def table(stored):
    """Return the report of stored results as text."""
    from nanoseek.cost import ASSUMED
    runs, dollars = stored["runs"], ASSUMED["dollars_per_hour"][0]
    _, whole, without, key = recipes_of(stored["setup"])
    first = f"{size}, all those" if (size := stored["setup"].get("size")) else "plain baseline"
    lines = [f"cost to reach {stored['target']} bits per byte; {stored['machine']}, one "
             f"core a run; median of the seeds (their range), rent at ${dollars}/h",
             f"{'':<18}{'seconds':>9}{'(range)':>14}{'preparing':>11}{'tokens':>9}{'TFLOP':>8}"
             f"{'memory':>9}{'KV cache':>10}{'rent':>10}   this trick"]
    for trick, cost, said in rows_of(runs, stored["setup"]):
        total, least, most = cost[key]
        lines.append(
            f"{'+ ' + trick if trick else first:<18}{total:>9.3g}"
            f"{f'({least:.3g}-{most:.3g})':>14}{cost['preparation_seconds'][0]:>11.1f}"
            f"{cost['tokens'][0] / 1e6:>7.2f} M"
            f"{cost['flops'][0] / 1e12:>8.2f}{cost['peak_bytes'][0] / 1e6:>6.0f} MB"
            f"{cost['kv_bytes_per_token'][0]:>8.0f} B{total / 3600 * dollars:>10.6f}   {said}")
    full = summary(runs, whole)
    alone = {left_out: summary(runs, tricks) for left_out, tricks in without.items()}
    if full and all(alone.values()):
        lines += ["", "each trick taken out alone from the recipe that has all of them "
                      f"({full[key][0]:.1f} s):"]
        for left_out, cost in alone.items():
            lines.append(f"without {left_out:<16}{cost[key][0]:>7.3g} s "
                         f"({cost[key][1]:.3g}-{cost[key][2]:.3g})   {verdict(cost, full, key)}")
    return "\n".join(lines)


def plot(stored):
    """Draw the ladder: a bar for each rung's cost to reach, with the range; return the figure."""
    import matplotlib.pyplot as plt
    rows = rows_of(stored["runs"], stored["setup"])
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(rows) + 1.1))
    grey = "#808080"  # legible on white and on black
    for place, (trick, cost, said) in enumerate(rows):
        total, least, most = cost["total"]
        colour = {"saved": "#3b82c4", "cost:": "#d0662c"}.get(said[:5], grey)
        axes.barh(place, total, color=colour, height=0.7)
        axes.plot([least, most], [place, place], color=grey, linewidth=1.5)
        axes.annotate(f"{total:.3g} s", (max(total, most), place), (4, 0), color=grey,
                      textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [f"+ {trick}" if trick else "plain baseline"
                                       for trick, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")  # a trick divides the cost: equal factors, equal lengths
    axes.set_xlim(left=min(cost["total"][1] for _, cost, _ in rows) / 2)
    axes.set_xlabel(f"processor seconds to reach {stored['target']} bits per byte, one core "
                    "(logarithmic)")
    for colour, words in (("#3b82c4", "saved"), ("#d0662c", "cost"),
                          (grey, "the seeds do not tell")):
        axes.barh(0, 0, color=colour, label=words)
    axes.legend(title="this trick", loc="lower right", frameon=False, labelcolor=grey,
                title_fontproperties={"weight": "normal"}).get_title().set_color(grey)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=grey)
    axes.xaxis.label.set_color(grey)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=grey)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results "
                        "(default: runs/waterfall, or runs/waterfall-quick)")
    parser.add_argument("--quick", action="store_true", help="one seed, the ladder only")
    parser.add_argument("--later", choices=SIZES, help="DeepSeek's later tricks, at this size")
    parser.add_argument("--tune", action="store_true", help="try the learning rates")
    parser.add_argument("--report", type=pathlib.Path, help="only print stored results")
    parser.add_argument("--plain", type=pathlib.Path, help="train the plain baseline and keep it")
    parser.add_argument("--steps", type=int, default=1000, help="of that")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        task, *arguments = json.loads(args.task)
        return print(json.dumps(TASKS[task](*arguments)))
    if args.report:
        stored = json.loads(args.report.read_text("utf-8"))
        if "size" in stored["setup"]:
            return print(table(stored))
        plot(stored).savefig(args.report.with_suffix(".svg"), bbox_inches="tight")
        return print(table(stored))
    runs = HERE.parent.parent / "runs"
    out = args.out or runs / ("waterfall-quick" if args.quick else "waterfall")
    out.mkdir(parents=True, exist_ok=True)
    if args.tune:
        return tune(runs / "waterfall-tokens")
    if args.plain:
        in_a_process("prepare", (), str(runs / "waterfall-tokens"))
        return print(in_a_process("train_once", (), args.steps, 0,
                                  str(tokens_of((), runs / "waterfall-tokens")), None,
                                  str(args.plain)))
    name = f"later_{args.later}" if args.later else "waterfall"
    path, setup = out / f"{name}.json", SETUP | ({"size": args.later} if args.later else {})
    before = json.loads(path.read_text("utf-8"))["setup"] if path.exists() else {}
    if "left_out" in before or not before and not in_a_process("multiplies_bf16"):
        setup["left_out"] = ["bf16"]
    results = Results(path, setup)
    rungs, _, without, _ = recipes_of(setup)
    others = [] if args.quick else [tricks for tricks in without.values() if tricks not in rungs]
    seeds = SEEDS[:1] if args.quick else SEEDS
    plan = [(tricks, seed) for recipes in (rungs, others) for seed in seeds for tricks in recipes]
    measure(results, plan, runs / "waterfall-tokens")
    stored = json.loads(results.path.read_text("utf-8"))
    (out / f"{name}.txt").write_text(table(stored) + "\n", "utf-8")
    print(table(stored))
    if not args.later and rows_of(stored["runs"], setup):
        plot(stored).savefig(out / "waterfall.svg", bbox_inches="tight")


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
