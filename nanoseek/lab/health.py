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
from nanoseek.checkpoint import checkpoints, load_model, newest_intact, read_json
from nanoseek.data import TokenStream, read_manifest
from nanoseek.evaluate import held_out, nats
from nanoseek.lab.subject import few_threads
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


# --- What a run left ----------------------------------------------------------------------------

def read_rows(folder):
    """Return (rows of a run's log.jsonl, whether its last line is cut off).

    Raises ValueError for a log that is missing, empty, damaged, or lacks rows in its middle.
    """
    path, rows = pathlib.Path(folder) / "log.jsonl", []
    if not path.is_file():
        raise ValueError(f"{folder} is no run: it holds no log.jsonl")
    *lines, rest = path.read_bytes().split(b"\n")
    for number, row in enumerate(read_log(folder, math.inf)[:len(lines)], start=1):
        try:
            rows.append({"step": row["step"], "learning_rate": float(row["learning_rate"]),
                         **{k: row[k] if row[k] is None else float(row[k])
                            for k in ("loss", "gradient_norm")},
                         "held_out": {s: float(v) for s, v in row.get("held_out", {}).items()}})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}: the row of step {row['step']} is damaged") from None
        if row["step"] != number:
            raise ValueError(f"{path}: rows are missing or damaged before that of step "
                             f"{row['step']}, so the run cannot be judged")
    if len(rows) < max(1, len(lines)):
        raise ValueError(f"{path}: its last row is damaged" if lines else
                         f"{path} holds no rows: name a run that has been trained")
    return rows, bool(rest)


class Record:
    """What a run left: log rows, tokens, and of its newest checkpoint the config and the model."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.rows, self.cut = read_rows(folder)
        newest = newest_intact(folder) if checkpoints(folder) else None
        self.state = {} if newest is None else read_json(newest / "trainer.json")
        self.config = self.state.get("config", {})
        self.model = newest and load_model(newest)
        self.tokens = pathlib.Path(self.config.get("tokens") or self.folder / "tokens")
        self.manifest = read_manifest(self.tokens)
        self.tokenizer_path = (newest or self.tokens.parent) / "tokenizer.json"
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
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
    found = {**_measure_log(run, run.config.get("steps", steps)), **_measure_copies(run)}
    if run.model is not None:
        found.update(_measure_model(run))
    path = run.folder / "cost.json"
    if path.is_file():
        try:
            found["share of the machine's ceiling"] = float(read_json(path)["mfu"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: finish the run again") from None
    return found


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
    before = max((entry for entry in known if entry[0] <= step), default=None)
    after = min((entry for entry in known if entry[0] >= step), default=None)
    if before is None or after is None:
        return None
    if before == after:
        return after[1]
    way = math.log(step / before[0]) / math.log(after[0] / before[0])
    return before[1] ** (1 - way) * after[1] ** way


def _measure_copies(run):
    seen, count = set(), 0
    for entry in run.manifest["splits"]["train"].values():
        stream = TokenStream(run.tokens, entry, run.manifest["dtype"], verify=False)
        count += len(stream)
        seen.update(hashlib.sha256(stream.document(n).tobytes()).digest()
                    for n in range(len(stream)))
    return {"different training documents, share": len(seen) / count}


def _measure_model(run):
    found, copied, inputs = {}, 0, 0
    for source in run.stories:
        bits = []
        for split in ("held_out", "train"):
            documents = held_out(run.tokens, SCORED_TOKENS, split)[source]
            size = sum(len(run.tokenizer.decode_bytes(ids[1:-1])) for ids in documents)
            bits.append(nats(run.model, documents) / math.log(2) / max(1, size))
        found[f"held-out over training bits per byte, {source}"] = bits[0] / bits[1]
        for ids in held_out(run.tokens, 2000)[source]:
            ids = torch.from_numpy(ids[:run.model.config.max_position_embeddings])
            with torch.inference_mode():
                copied += int((run.model(ids[None])[0].argmax(-1) == ids).sum())
            inputs += len(ids)
    return found | ({"repeats its input, share": copied / inputs} if inputs else {})


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
    """Tell whether the run's tokenizer.json did not write its tokens."""
    known = run.manifest["tokenizer_sha256"]
    if known and known != hashlib.sha256(run.tokenizer_path.read_bytes()).hexdigest():
        return True
    try:
        return any(list(run.tokenizer.encode(run.tokenizer.decode(ids))) != ids
                   for documents in held_out(run.tokens, 2000).values()
                   for ids in (document[1:-1].tolist() for document in documents))
    except ValueError:  # an id that it does not have
        return True


def below_the_floor(run):
    """Return which text the model predicts better than possible: of "training", "held-out"."""
    train, test = run.manifest["splits"]["train"], run.manifest["splits"]["held_out"]
    shares = {source: entry["tokens"] for source, entry in train.items()}
    if "loader" in run.state:  # the tokens that each source has served
        shares = {source: (place["epoch"] + 1) * shares[source] - sum(place["left"])
                  for source, place in run.state["loader"]["sources"].items()}
    floor = sum(share * -train[s]["log2_probability"] * math.log(2) / train[s]["tokens"]
                for s, share in shares.items() if train[s]["log2_probability"] is not None)
    tail = whole(run.rows[-max(1, len(run.rows) // 20):])
    found = set()
    if tail and statistics.fmean(row["loss"] for row in tail) < 0.95 * floor / sum(shares.values()):
        found.add("training")
    last = next((row["held_out"] for row in reversed(run.rows) if row["held_out"]), {})
    if any(last[s] < 0.95 * -test[s]["log2_probability"] / test[s]["bytes"]
           for s in run.stories if s in last):
        found.add("held-out")
    return found


# --- The diagnosis ------------------------------------------------------------------------------

def diagnose(run, measured, off):
    """Return the names of the likely causes (keys of CAUSES), the surest first.

    off: {measure: 1 or -1} of what lies above or below its band. A fault that explains others
    silences them: a model that sees the answers has no normal loss, and no normal gap.
    """
    below, found = below_the_floor(run), []
    repeats = measured.get("repeats its input, share", 0)
    if run.model is not None and sees_the_future(run.model) or below == {"training", "held-out"}:
        found.append("future")
    elif repeats > 0.9 or off.get("repeats its input, share") == 1 and "training" in below:
        found.append("shift")
    if foreign_tokenizer(run):
        found.append("tokenizer")
    if measured["different training documents, share"] < 0.9 or not found and any(
            sign == 1 for name, sign in off.items() if name.startswith("held-out over")):
        found.append("copies")
    if {"future", "shift", "tokenizer"} & set(found):
        return found
    if any(name.startswith("first loss") or name == "gradient norm, first step" for name in off):
        found.append("init")
    highest = off.get("learning rate, highest")
    if highest:
        found.append("high" if highest == 1 else "low")
    elif off.get("learning rate, first step") == 1:
        found.append("warmup")
    return found or ["unknown"] * bool(off)


def check(folder, bands, say=lambda text: None):
    """Return (report, names of the likely causes) of a run; bands: what bands.json holds."""
    run = Record(folder)
    say("scoring stories of the run")
    with few_threads(*filter(None, [run.model])):
        measured = measure(run, bands["recipe"]["steps"])
    differs = ", ".join(f"{name} {run.config[name]} for {value}"
                        for name, value in bands["recipe"].items()
                        if run.config.get(name, value) != value)
    limits = {} if differs else bands["bands"]
    off = {name: 1 if value > limits[name][1] else -1 for name, value in measured.items()
           if name in limits and not limits[name][0] <= value <= limits[name][1]}
    slow = off.pop("share of the machine's ceiling", 0) == -1
    causes = diagnose(run, measured, off)
    lines = [f"{folder}: {len(run.rows)} steps"
             + (f" of {run.config['steps']}" if run.config else ", no checkpoint yet")
             + (f"; beside {bands['seeds']} healthy runs of the tiny recipe" if limits else "")]
    lines += _table(measured, limits, off)
    if differs:
        lines.append(f"another recipe than the bands' ({differs}): only what holds for every run "
                     "was checked")
    if run.cut:
        lines.append("the last line of log.jsonl is cut off: the run was stopped while it wrote")
    if run.state.get("step", 0) > len(run.rows):
        lines.append(f"the newest checkpoint is of step {run.state['step']}: rows were lost")
    if slow:
        lines.append("slow: other programs may keep the processor busy, or the rows are too short")
    lines += [f"likely cause: {CAUSES[name]}" for name in causes] or ["healthy: nothing is off"]
    return "\n".join(lines), causes


def _table(measured, limits, off):
    width = max(map(len, measured)) + 2
    yield f"{'':<{width}}{'this run':>10}" + f"{'healthy':>20}" * bool(limits)
    for name, value in measured.items():
        band = "{:.4g} – {:.4g}".format(*limits[name]) if name in limits else ""
        mark = {1: "  too high", -1: "  too low"}.get(off.get(name), "")
        yield f"{name:<{width}}{value:>10.4g}  {band:>18}{mark}".rstrip()


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
    report, causes = check(args.folder, read_bands(args.bands), cli.say)
    print(report)
    return 1 if causes else 0
