"""Is my loss normal? A run held against healthy runs of the same recipe, and against the possible.

    python -m nanoseek.evaluate check runs/tiny

`measure` turns a run's folder into a few named numbers; bands.json beside this file holds what
they were in healthy runs of the tiny recipe with other seeds (made by
tutorials/experiments/reference_bands.py; on stories only, as Python's documentation differs by
version). What lies outside its band is shown, with the likely cause in plain words. Some faults
show in any recipe: a loss below the grammar's own entropy, a future that changes the past, a
model that repeats its input, a tokenizer that did not write the tokens, copies in the data.
"""

import hashlib
import json
import math
import pathlib
import statistics

import numpy as np
import torch

from nanoseek import cli
from nanoseek.checkpoint import checkpoints, load_model, newest_intact, read_json
from nanoseek.data import TokenStream, read_manifest
from nanoseek.evaluate import held_out, nats
from nanoseek.lab.subject import spare_threads
from nanoseek.scale.folder import read_log
from nanoseek.tokenizer import Tokenizer

BANDS = pathlib.Path(__file__).with_name("bands.json")
# What makes a run another recipe, rather than a sick one: bands of other numbers say nothing.
RECIPE = ("steps", "batch_size", "row_length", "optimizer", "schedule", "vocab_size",
          "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "tie_word_embeddings")
LANDMARKS = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the steps
SCORED_TOKENS = 20000  # of each source and split, to compare training and held-out text
CAUSES = {
    "future": "the attention mask leaks the future: a position sees the token that it is to "
              "predict. Look at the causal mask, also of packed documents.",
    "shift": "the targets are not shifted: the model has learnt to repeat its input. The target "
             "of a position is the token after it.",
    "tokenizer": "tokenizer mismatch: the tokenizer.json of the run did not write its tokens. "
                 "Build the tokens and train again.",
    "copies": "duplicated data: the same documents come again and again, and the model learns "
              "them by heart. Deduplicate (python -m nanoseek.curate), or train for fewer epochs.",
    "init": "wrong initialisation: before its first step a model should know nothing, a loss of "
            "ln(vocabulary), with gradients of the usual size. Look at initializer_range.",
    "high": "learning rate too high.", "low": "learning rate too low.",
    "warmup": "no warm-up: the first steps are as large as the largest. Give --warmup_steps.",
    "unknown": "none of the usual ones is plain: look at what is marked, at the samples, and at "
               "the data."}
# What lies outside its band → its cause: the beginning of its name, and 1 if above, -1 if below.
SYMPTOMS = {("held-out over training", 1): "copies",
            ("first loss", 1): "init", ("first loss", -1): "init",
            ("gradient norm, first step", 1): "init", ("gradient norm, first step", -1): "init",
            ("learning rate, highest", 1): "high", ("learning rate, highest", -1): "low",
            ("learning rate, first step", 1): "warmup"}


# --- What a run left ----------------------------------------------------------------------------

def read_rows(folder):
    """Return the rows of a run's log.jsonl, but for a last one that is cut off.

    Raises ValueError where there are none, or one is missing or damaged.
    """
    rows = [{"held_out": {}} | row for row in read_log(folder)]
    if not rows:
        raise ValueError(f"{folder} is no run: it holds no log.jsonl with rows")
    for number, row in enumerate(rows, start=1):
        try:
            values = [row["learning_rate"], *row["held_out"].values()]
            values += {row["loss"], row["gradient_norm"]} - {None}  # None: the step was skipped
            sound = row["step"] == number and all(type(v) in (int, float) for v in values)
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise ValueError(f"{folder}: in log.jsonl the row of step {number} is missing or "
                             "damaged, so the run cannot be judged")
    return rows


class Record:
    """What a run left: log rows, tokens, and of its newest checkpoint the config and the model."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.rows = read_rows(folder)
        newest = newest_intact(folder) if checkpoints(folder) else None
        self.state = {} if newest is None else read_json(newest / "trainer.json")
        self.config = self.state.get("config", {})
        self.model = newest and load_model(newest)
        self.tokens = pathlib.Path(self.config.get("tokens") or self.folder / "tokens")
        self.manifest = read_manifest(self.tokens)
        self.tokenizer = Tokenizer.load((newest or self.tokens.parent) / "tokenizer.json")
        self.stories = [source for source, entry in self.manifest["splits"]["held_out"].items()
                        if entry["log2_probability"] is not None]


def whole(rows):
    """Return the rows whose loss and gradient were finite: the steps that were not skipped."""
    return [row for row in rows if None not in (row["loss"], row["gradient_norm"])]


# --- Its numbers --------------------------------------------------------------------------------

def measure(run, steps=None):
    """Return the numbers of a Record by name: those that its log and checkpoint allow.

    steps: how many the run is to have, where no checkpoint says it.
    """
    found = _measure_log(run, run.config.get("steps", steps))
    streams = [TokenStream(run.tokens, entry, run.manifest["dtype"], verify=False)
               for entry in run.manifest["splits"]["train"].values()]
    different = {hashlib.sha256(stream.document(n).tobytes()).digest()
                 for stream in streams for n in range(len(stream))}
    found["different training documents, share"] = len(different) / sum(map(len, streams))
    return found if run.model is None else found | _measure_model(run)


def _measure_log(run, steps):
    rows, rates = run.rows, [row["learning_rate"] for row in run.rows]
    found = {"learning rate, first step": rates[0], "learning rate, highest": max(rates)}
    if whole(rows[:1]):
        found |= {"first loss, over ln(vocabulary)":
                  rows[0]["loss"] / math.log(run.manifest["vocab_size"]),
                  "gradient norm, first step": rows[0]["gradient_norm"]}
    for share in LANDMARKS:
        at = round(share * steps)
        near = whole(rows[max(0, at - max(1, steps // 50)):at])
        if not (0 < at <= len(rows) and near):
            continue
        # Later the loss depends on how much documentation is in the mix: stories are held out.
        if share <= 0.1:
            found[f"training loss at {share:.0%}"] = statistics.fmean(r["loss"] for r in near)
        found[f"gradient norm at {share:.0%}"] = statistics.median(
            r["gradient_norm"] for r in near)
        for source in run.stories:
            value = held_out_at(rows, source, at)
            if value is not None:
                found[f"bits per byte, {source}, at {share:.0%}"] = value
    return found


def held_out_at(rows, source, step):
    """Return held-out bits per byte at a step; None where there is no evaluation on either side.

    A run evaluates as often as it likes (--eval_every), so the value is read off the straight line,
    in logarithms, between the evaluations before and after.
    """
    known = [(row["step"], row["held_out"][source]) for row in rows if source in row["held_out"]]
    if not known or not known[0][0] <= step <= known[-1][0]:
        return None
    steps, values = np.log(known).T
    return math.exp(np.interp(math.log(step), steps, values))


def _measure_model(run):
    found, repeated = {}, []
    for source in run.stories:
        bits = []  # up to a factor
        for split in ("held_out", "train"):
            documents = held_out(run.tokens, SCORED_TOKENS, split)[source]
            size = sum(len(run.tokenizer.decode_bytes(ids[1:-1])) for ids in documents)
            bits.append(nats(run.model, documents) / max(1, size))
        found[f"held-out over training bits per byte, {source}"] = bits[0] / bits[1]
        for ids in held_out(run.tokens, 2000)[source]:
            ids = torch.from_numpy(ids[:run.model.config.max_position_embeddings])
            with torch.inference_mode():
                repeated += (run.model(ids[None])[0].argmax(-1) == ids).tolist()
    return found | ({"repeats its input, share": statistics.fmean(repeated)} if repeated else {})


# --- What holds for every run -------------------------------------------------------------------

def sees_the_future(model):
    """Tell whether a changed last id changes what the model says before it, packed or not."""
    size = min(16, model.config.max_position_embeddings)
    ids = torch.arange(size)[None] % model.config.vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    with torch.inference_mode():
        return any(not torch.allclose(model(ids, documents)[0, :-1],
                                      model(other, documents)[0, :-1], atol=1e-4)
                   for documents in (None, torch.zeros_like(ids)))


def foreign_tokenizer(run):
    """Tell whether the run's tokenizer.json did not write its tokens: text gets other ids."""
    documents = [ids[1:-1].tolist() for several in held_out(run.tokens, 2000).values()
                 for ids in several]
    try:
        return any(list(run.tokenizer.encode(run.tokenizer.decode(ids))) != ids
                   for ids in documents)
    except ValueError:  # an id that it does not have
        return True


def below_the_floor(run):
    """Tell whether the last look at held-out stories found fewer bits than the grammar's entropy.

    A look takes few documents, whose own entropy may be a little lower: hence a tenth of slack.
    """
    entries = run.manifest["splits"]["held_out"]
    last = next((row["held_out"] for row in reversed(run.rows) if row["held_out"]), {})
    return any(last[s] < 0.9 * -entries[s]["log2_probability"] / entries[s]["bytes"]
               for s in run.stories if s in last)


# --- The diagnosis ------------------------------------------------------------------------------

def diagnose(run, measured, off):
    """Return the names of the likely causes (keys of CAUSES), the surest first.

    off: {measure: 1 or -1} of what lies above or below its band. A fault that explains others
    silences them: a model that sees the answers has no normal loss, and no normal gap.
    """
    faults = {
        "future": run.model is not None and sees_the_future(run.model) or below_the_floor(run),
        "shift": measured.get("repeats its input, share", 0) > 0.9,
        "tokenizer": foreign_tokenizer(run),
        "copies": measured["different training documents, share"] < 0.9}
    found = [cause for cause, there in faults.items() if there]
    if not found:
        found = [cause for (start, sign), cause in SYMPTOMS.items()
                 if any(name.startswith(start) and off[name] == sign for name in off)]
        if "high" in found and "warmup" in found:  # the first step is high as all others are
            found.remove("warmup")
    return list(dict.fromkeys(found)) or ["unknown"] * bool(off)


def check(folder, bands):
    """Return (report, names of the likely causes) of a run; bands: what bands.json holds."""
    run = Record(folder)
    if run.model:
        spare_threads(run.model)
    measured = measure(run, bands["recipe"]["steps"])
    differs = ", ".join(f"{name} {run.config[name]} for {value}"
                        for name, value in bands["recipe"].items()
                        if run.config.get(name, value) != value)
    limits = {} if differs else bands["bands"]
    off = {name: 1 if value > limits[name][1] else -1 for name, value in measured.items()
           if name in limits and not limits[name][0] <= value <= limits[name][1]}
    causes = diagnose(run, measured, off)
    lines = [f"{folder}: {len(run.rows)} steps"
             + (f" of {run.config['steps']}" if run.config else ", no checkpoint yet")
             + (f"; beside {bands['seeds']} healthy runs of the tiny recipe" if limits else "")]
    width = max(map(len, measured)) + 2
    lines.append(f"{'':<{width}}{'this run':>10}" + f"{'healthy':>20}" * bool(limits))
    for name, value in measured.items():
        band = "{:.4g} – {:.4g}".format(*limits[name]) if name in limits else ""
        mark = {1: "  too high", -1: "  too low"}.get(off.get(name), "")
        lines.append(f"{name:<{width}}{value:>10.4g}  {band:>18}{mark}".rstrip())
    if differs:
        lines.append(f"another recipe than the bands' ({differs}): only what holds for every run "
                     "was checked")
    if run.state.get("step", 0) > len(run.rows):
        lines.append(f"the newest checkpoint is of step {run.state['step']}: the end of log.jsonl "
                     "is cut off")
    lines += [f"likely cause: {CAUSES[name]}" for name in causes] or ["healthy: nothing is off"]
    return "\n".join(lines), causes


def read_bands(path=BANDS):
    """Return what bands.json holds; raises ValueError when it is missing or damaged."""
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        bands = {name: [float(least), float(most)]
                 for name, (least, most) in found["bands"].items()}
        return {"recipe": {name: found["recipe"][name] for name in RECIPE},
                "seeds": found["seeds"], "bands": bands}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no bands ({error!r}): make them with "
                         "python tutorials/experiments/reference_bands.py") from None


def main(argv):
    """Print the health of a run; return 1 where something is off."""
    parser = cli.Parser("nanoseek.evaluate check", "Hold a run against healthy ones.")
    parser.add_argument("folder", help="a run")
    parser.add_argument("--bands", default=BANDS, help="the reference (default: beside the code)")
    args = parser.parse_args(argv)
    report, causes = check(args.folder, read_bands(args.bands))
    print(report)
    return 1 if causes else 0
