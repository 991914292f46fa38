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

import torch

from nanoseek import cli
from nanoseek.checkpoint import find_checkpoint, read_json
from nanoseek.data import TokenStream, read_manifest
from nanoseek.evaluate import held_out, nats
from nanoseek.lab.price_tag import columns
from nanoseek.lab.subject import open_subject, spare_threads
from nanoseek.scale.folder import read_log

BANDS = pathlib.Path(__file__).with_name("bands.json")
# What makes a run another recipe, rather than a sick one: bands of other numbers say nothing.
RECIPE = ("steps", "batch_size", "row_length", "optimizer", "schedule", "vocab_size",
          "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "tie_word_embeddings")
NEEDED = {"step", "loss", "gradient_norm", "learning_rate"}  # in each row of log.jsonl
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
    "unknown": "none of the usual ones: look at what is marked, at the samples and at the data."}
SYMPTOMS = (  # the beginning of a measure's name, the cause if it is too high, if it is too low
    ("held-out over training", "copies", None), ("first loss", "init", "init"),
    ("gradient norm, first step", "init", "init"), ("learning rate, highest", "high", "low"),
    ("learning rate, first step", "warmup", None))


# --- A run and its numbers ----------------------------------------------------------------------

class Record:
    """What a run left. ValueError before its first checkpoint, or where its log misses a row."""

    def __init__(self, folder):
        subject = open_subject(folder, fast=False)
        self.model, self.tokenizer, self.rows = subject.model, subject.tokenizer, read_log(folder)
        steps = [row["step"] for row in self.rows if NEEDED <= row.keys()]
        if not steps or steps != list(range(1, len(self.rows) + 1)):
            raise ValueError(f"{folder} cannot be judged: its log.jsonl must hold a whole row for "
                             "each step from 1 on")
        self.config = read_json(find_checkpoint(folder) / "trainer.json")["config"]
        self.tokens = subject.tokens or pathlib.Path(folder, "tokens")
        self.manifest = read_manifest(self.tokens)
        self.stories = [source for source, entry in self.manifest["splits"]["held_out"].items()
                        if entry["log2_probability"] is not None]


def whole(rows):
    """Return the rows whose loss and gradient were finite: the steps that were not skipped."""
    return [row for row in rows if None not in (row["loss"], row["gradient_norm"])]


def measure(run):
    """Return the numbers of a Record by name: those that its log and its model allow."""
    streams = [TokenStream(run.tokens, entry, run.manifest["dtype"], verify=False)
               for entry in run.manifest["splits"]["train"].values()]
    different = {hashlib.sha256(stream.document(n).tobytes()).digest()
                 for stream in streams for n in range(len(stream))}
    share = len(different) / sum(map(len, streams))
    return _measure_log(run) | {"different training documents, share": share} | _measure_model(run)


def _measure_log(run):
    rows, rates, steps = run.rows, [row["learning_rate"] for row in run.rows], run.config["steps"]
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
        scores = rows[at - 1].get("held_out", {})  # empty where the run did not evaluate
        found |= {f"bits per byte, {source}, at {share:.0%}": scores[source]
                  for source in run.stories if source in scores}
    return found


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


# --- Faults that show in every recipe -----------------------------------------------------------

def sees_the_future(model):
    """Tell whether a changed last id changes what the model says before it, packed or not."""
    ids = torch.arange(8)[None]
    other = torch.cat((ids[:, :-1], ids[:, :1]), dim=1)
    with torch.inference_mode():
        return any(not torch.allclose(model(ids, documents)[0, :-1],
                                      model(other, documents)[0, :-1], atol=1e-4)
                   for documents in (None, torch.zeros_like(ids)))


def foreign_tokenizer(run):
    """Tell whether the run's tokenizer.json did not write its tokens: text gets other ids."""
    try:
        return any(run.tokenizer.encode(run.tokenizer.decode(ids[1:-1])) != ids[1:-1].tolist()
                   for documents in held_out(run.tokens, 2000).values() for ids in documents)
    except ValueError:  # an id that it does not have
        return True


def below_the_floor(run):
    """Tell whether the last look at held-out stories found fewer bits than the grammar's entropy.

    A look takes few documents, whose own entropy may be a little lower: hence a twentieth of slack.
    """
    entries = run.manifest["splits"]["held_out"]
    last = next((row["held_out"] for row in reversed(run.rows) if row.get("held_out")), {})
    return any(last[s] < 0.95 * -entries[s]["log2_probability"] / entries[s]["bytes"]
               for s in run.stories if s in last)


# --- The diagnosis ------------------------------------------------------------------------------

def diagnose(run, measured, off):
    """Return the names of the likely causes (keys of CAUSES), the surest first.

    off: {measure: 1 or -1} of what lies above or below its band. A fault that explains others
    silences them: a model that sees the answers has no normal loss, and no normal gap.
    """
    faults = {
        "future": sees_the_future(run.model) or below_the_floor(run),
        "shift": measured.get("repeats its input, share", 0) > 0.9,
        "tokenizer": foreign_tokenizer(run),
        "copies": measured["different training documents, share"] < 0.9}
    found = [cause for cause, there in faults.items() if there]
    if not found:
        found = [above if off[name] > 0 else below for start, above, below in SYMPTOMS
                 for name in off if name.startswith(start)]
        if "high" in found and "warmup" in found:  # the first step is high as all others are
            found.remove("warmup")
    return list(dict.fromkeys(filter(None, found))) or ["unknown"] * bool(off)


def check(folder, bands=None):
    """Return (report, names of the likely causes) of a run; bands: as bands.json, unless given."""
    bands = bands or json.loads(BANDS.read_text(encoding="utf-8"))
    run = Record(folder)
    spare_threads(run.model)
    measured = measure(run)
    differs = ", ".join(f"{name} {run.config[name]} for {value}"
                        for name, value in bands["recipe"].items()
                        if run.config.get(name, value) != value)
    limits = {} if differs else bands["bands"]
    off = {name: 1 if value > limits[name][1] else -1 for name, value in measured.items()
           if name in limits and not limits[name][0] <= value <= limits[name][1]}
    causes = diagnose(run, measured, off)
    rows = [("", "this run", "healthy" * bool(limits), "")]
    for name, value in measured.items():
        band = "{:.4g} – {:.4g}".format(*limits[name]) if name in limits else ""
        mark = {1: "too high", -1: "too low"}.get(off.get(name), "")
        rows.append((name, f"{value:.4g}", band, mark))
    beside = f"beside {bands['seeds']} healthy runs of the tiny recipe" if limits else \
        f"of another recipe ({differs}): checked is only what holds for every run"
    lines = [f"{folder}: {len(run.rows)} steps of {run.config['steps']}, {beside}", columns(rows)]
    lines += [f"likely cause: {CAUSES[name]}" for name in causes] or ["healthy: nothing is off"]
    return "\n".join(lines), causes


def main(argv):
    """Print the health of a run; return 1 where something is off."""
    parser = cli.Parser("nanoseek.evaluate check", "Hold a run against healthy ones.")
    parser.add_argument("folder", help="a run")
    report, causes = check(parser.parse_args(argv).folder)
    print(report)
    return 1 if causes else 0
