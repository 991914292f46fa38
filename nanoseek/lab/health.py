"""Is my loss normal? A run held against healthy runs of the same recipe, and against the possible.

    python -m nanoseek.evaluate check runs/tiny

`measure` turns a run into named numbers. bands.json holds what they were in healthy runs of the
tiny recipe, made by tutorials/experiments/reference_bands.py (of stories only, as Python's
documentation differs by version). What lies outside its band is shown with the likely cause."""

import pathlib
from math import inf, log
from statistics import fmean, median

import torch

from nanoseek import cli
from nanoseek.checkpoint import find_checkpoint, read_json
from nanoseek.data import TokenStream, read_manifest
from nanoseek.evaluate import bits_per_byte, held_out, nats, unigram_nats
from nanoseek.lab.price_tag import columns
from nanoseek.lab.subject import open_subject, spare_threads
from nanoseek.scale.folder import memorised_from, read_log

BANDS, CAUSES = map(pathlib.Path(__file__).with_name, ("bands.json", "causes.json"))
NEEDED = {"step", "loss", "gradient_norm", "learning_rate"}  # in each row of log.jsonl
LANDMARKS = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the steps
SCORED_TOKENS = 20000  # of each source and split, to compare training and held-out text
SYMPTOMS = (  # the beginning of a measure's name, the cause if it is too high, if it is too low
    ("held-out over training", "copies", None), ("first loss", "init", "init"),
    ("gradient norm, first step", "init", "init"), ("learning rate, highest", "high", "low"),
    ("learning rate, first step", "warmup", None), ("bits over a unigram", "unigram", None))


class Record:
    """What a run left. ValueError before its first checkpoint, or where its log misses a row."""
    def __init__(self, folder):
        self.model, self.tokenizer, *_, self.tokens = open_subject(folder, fast=False)
        self.config = read_json(find_checkpoint(folder) / "trainer.json")["config"]
        self.rows = read_log(folder)
        if not self.rows or any(row["step"] != number or not NEEDED <= row.keys()
                                for number, row in enumerate(self.rows, 1)):
            raise ValueError(f"{folder} cannot be judged: its log.jsonl must hold a whole row for "
                             "each step from 1 on")
        self.manifest, self.texts = read_manifest(self.tokens), held_out(self.tokens, 2000)
        self.floors = {source: -entry["log2_probability"] / entry["bytes"]  # of stories only
                       for source, entry in self.manifest["splits"]["held_out"].items()
                       if entry["log2_probability"] is not None}


@torch.inference_mode()
def measure(run):
    """Return the numbers of a Record by name: those that its log and its model allow."""
    steps, rates = run.config["steps"], [row["learning_rate"] for row in run.rows]
    found = {"learning rate, first step": rates[0], "learning rate, highest": max(rates)}
    # Without the steps that were skipped, which moved no weight.
    rows = [row for row in run.rows if None not in (row["loss"], row["gradient_norm"])]
    for row in rows[:1]:
        found["first loss, over ln(vocabulary)"] = row["loss"] / log(run.manifest["vocab_size"])
        found["gradient norm, first step"] = row["gradient_norm"]
    for share in LANDMARKS:
        at = round(share * steps)
        near = [row for row in rows if at - max(1, steps // 50) < row["step"] <= at]
        if at > len(run.rows) or not near:
            continue
        # Later the loss depends on how much documentation is in the mix: stories are held out.
        if share <= 0.1:
            found[f"training loss at {share:.0%}"] = fmean(row["loss"] for row in near)
        found[f"gradient norm at {share:.0%}"] = median(row["gradient_norm"] for row in near)
        scores = run.rows[at - 1].get("held_out", {})  # empty where the run did not evaluate
        found |= {f"bits per byte, {source}, at {share:.0%}": scores[source]
                  for source in run.floors if source in scores}
    streams = [TokenStream(run.tokens, entry, run.manifest["dtype"], verify=False)
               for entry in run.manifest["splits"]["train"].values()]
    hashes = [hash(s.document(n).tobytes()) for s in streams for n in range(len(s.lengths))]
    found["different training documents, share"] = len({*hashes}) / len(hashes)
    for source in run.floors or run.texts:
        found[f"bits over a unigram model's, {source}"] = nats(run.model, run.texts[source]) / (
            unigram_nats(run.tokens, source, run.texts[source]))
    splits = [held_out(run.tokens, SCORED_TOKENS, split) for split in ("held_out", "train")]
    repeated = []
    for source in filter(splits[1].get, run.floors):  # some may have held-out text only
        new, known = (bits_per_byte(run.model, run.tokenizer, split[source]) for split in splits)
        found[f"held-out over training bits per byte, {source}"] = new / known
        for ids in run.texts[source]:
            ids = torch.from_numpy(ids[:run.model.config.max_position_embeddings])
            repeated += (run.model(ids[None])[0].argmax(-1) == ids).tolist()
    return found | ({"repeats its input, share": fmean(repeated)} if repeated else {})


@torch.inference_mode()
def sees_the_future(model):
    """Tell whether a changed last id changes what the model says before it, packed or not."""
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 0]])
    said = [model(ids, documents)[:, :-1] for documents in (None, torch.zeros_like(ids))]
    return any(not torch.allclose(one, other, atol=1e-4) for one, other in said)


def diagnose(run, measured, off):
    """Return the likely causes (keys of CAUSES), the surest first. off: {measure: "too high" or
    "too low"}. A fault of any recipe silences the bands: without it, all might be as usual."""
    last = next((row["held_out"] for row in reversed(run.rows) if row.get("held_out")), {})
    # The few documents of a look may have less entropy than the floor: a twentieth is let pass.
    below = any(last[s] < 0.95 * floor for s, floor in run.floors.items() if s in last)
    faults = {
        "future": below or sees_the_future(run.model),
        "shift": measured.get("repeats its input, share", 0) > 0.9,
        "tokenizer": any(run.tokenizer.encode(run.tokenizer.decode(ids[1:-1])) != ids[1:-1].tolist()
                         for documents in run.texts.values() for ids in documents),
        "copies": measured["different training documents, share"] < 0.9}
    found = [cause for cause, there in faults.items() if there]
    if not found and memorised_from(run.rows):
        found = ["memorised"]
    if not found:
        found = [above if off[name] == "too high" else below for start, above, below in SYMPTOMS
                 for name in off if name.startswith(start)]
        if "high" in found and "warmup" in found:  # the first step is high as all others are
            found.remove("warmup")
    return list(dict.fromkeys(filter(None, found))) or ["unknown"] * bool(off)


def check(folder, bands=None):
    """Return (report, names of the likely causes) of a run; bands: as bands.json, unless given."""
    bands = bands or read_json(BANDS)
    run, limits = Record(folder), bands["bands"]
    spare_threads(run.model)
    beside = f"beside {bands['seeds']} healthy runs of the tiny recipe"
    other = [f"{name} {run.config[name]} for {want}" for name, want in bands["recipe"].items()
             if run.config.get(name, want) != want]
    if other := other + ["text without a grammar"] * (not run.floors):
        beside = f"of another recipe ({', '.join(other)}): checked is only what holds for every run"
        limits = {}
    measured, off = measure(run), {}
    rows = [("", "this run", "healthy" * bool(limits), "")]
    for name, value in measured.items():
        least, most = limits.get(name, (-inf, 1 if name.startswith("bits over") else inf))
        if not least <= value <= most:
            off[name] = "too high" if value > most else "too low"
        band = f"{least:.4g} – {most:.4g}" if name in limits else ""
        rows.append((name, f"{value:.4g}", band, off.get(name, "")))
    causes, words = diagnose(run, measured, off), read_json(CAUSES)
    lines = [f"{folder}: {len(run.rows)} steps of {run.config['steps']}, {beside}", columns(rows)]
    lines += [f"likely cause: {words[name]}" for name in causes] or ["healthy: nothing is off"]
    return "\n".join(lines), causes


def main(argv):
    """Print the health of a run; return 1 where something is off."""
    parser = cli.Parser("nanoseek.evaluate check", "Hold a run against healthy ones.")
    parser.add_argument("folder", help="a run")
    report, causes = check(parser.parse_args(argv).folder)
    print(report)
    return 1 if causes else 0
