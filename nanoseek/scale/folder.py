"""What lies in a run's folder beside its checkpoints, and which settings it keeps.

    rows = read_log("runs/tiny", step=240)       # of log.jsonl
    check_settings(run, state, branching=False)  # refuses what would make it another run"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import statistics

from nanoseek.checkpoint import newest_intact, read_json
from nanoseek.optim import CLIP, WEIGHT_DECAY

# The settings that a run may change when it goes on from a checkpoint: those that move no weight,
HARMLESS = {"out", "tokens", "eval_every", "save_every", "keep", "branch_from", "memorise",
            "minutes", "max_position_embeddings"}
# and those that move last bits only, which is said.
ROUNDING = {"accumulation", "activation_checkpointing", "compile", "device", "fast", "threads",
            "parallel", "ranks"}
# A branch keeps its model and these; how the steps to come are taken is its own.
KEPT = {"weights", "document_mask", "optimizer", "embedding_factor", "precision", "seed"}


def fingerprint(tokens_folder):
    """Return the sha256 of a manifest.json, which holds that of all else in the tokens' folder."""
    return hashlib.sha256(pathlib.Path(tokens_folder, "manifest.json").read_bytes()).hexdigest()


def as_json(config):
    """Return a TrainConfig as a flat dict, the model's fields among the others."""
    flat = dataclasses.asdict(config)
    # Two that once were settings: an old checkpoint may have been made with other values.
    return {"clip": CLIP, "weight_decay": WEIGHT_DECAY} | flat.pop("model") | flat


def check_settings(run, state, branching):
    """Refuse, by name, what would silently make this another run than that of a checkpoint's state;
    say what only rounds otherwise. branching: whether it is a run of its own from there on."""
    if state["fingerprint"] != run.fingerprint:
        raise ValueError(f"{run.config.tokens_folder} is not the data that this run began with: "
                         "start a new one with another --out")
    now = as_json(run.config) | {"device": run.device.type, "ranks": run.ranks.size}
    # A setting that the checkpoint does not know came later, and its default is what was before.
    before = as_json(type(run.config)()) | state["config"] | state  # with its device and ranks
    for name, automatic in (("precision", "auto"), ("threads", 0)):
        if now[name] in (automatic, state["choices"][name]):
            before[name] = now[name]  # what was measured is kept
    changed = {name: f"{name} from {before[name]} to {now[name]}" for name in now
               if before[name] != now[name] and name not in HARMLESS}
    rounding = [changed.pop(name) for name in [*changed] if name in ROUNDING]
    kept = KEPT | vars(run.config.model).keys() if branching else changed.keys()
    if refused := [text for name, text in changed.items() if name in kept]:
        raise ValueError(f"a run that goes on keeps these settings; changed: {', '.join(refused)}")
    if branching and state["step"] >= run.config.steps:
        raise ValueError(f"raise --steps: the branch begins at step {state['step']}")
    if rounding:
        run.say(f"equal but for rounding, since these changed: {', '.join(rounding)}")


def set_aside_run_on_other_data(run, tokens_folder):
    """Move what training left in a run's folder into its folder `before`, if that was on other
    tokens than these: so whoever did not mean it loses nothing. An older `before` goes."""
    run = pathlib.Path(run)
    newest = newest_intact(run, say=lambda text: None)
    if newest and read_json(newest / "trainer.json").get("fingerprint") not in (
            None, fingerprint(tokens_folder)):
        aside = run / "before"
        print(f"{tokens_folder} holds new data: training begins anew; the old run is in {aside}")
        if (aside / "checkpoints").exists():  # else a move that was broken off: it goes on
            shutil.rmtree(aside)
        aside.mkdir(exist_ok=True)
        for name in ("cost.json", "report.html", "log.jsonl", "checkpoints"):
            if (run / name).exists():
                os.replace(run / name, aside / name)


def read_log(run, step=float("inf")):
    """Return the rows of a run's log.jsonl up to `step`, but for lines that are none."""
    path, rows = pathlib.Path(run) / "log.jsonl", []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(line)
            float(row.get("learning_rate", 0)), overall(row.get("held_out") or {"": 1})  # no row?
            if row["step"] <= step:
                rows.append(row)
    return rows


def overall(held_out):
    """Return one score for {source: bits per byte}: the geometric mean, in which a tenth less
    counts as much for stories at 0.2 as for documentation at 2."""
    return statistics.geometric_mean(held_out.values())


def memorised_from(log):
    """Return the step from which on a run only learnt its text by heart, or None: since then
    held-out text was predicted 2% worse, twice or more, and the training text better."""
    scores = [(overall(row["held_out"]), row["step"]) for row in log if row.get("held_out")]
    best, step = min(scores, default=(0, 0))
    since = [score for score, later in scores if later > step]
    if len(since) < 2 or min(since) < 1.02 * best:
        return None
    then, now = (statistics.median(row["loss"] or math.inf for row in rows[-20:])
                 for rows in ([row for row in log if row["step"] <= step], log))
    return step if now < then else None


def optimizer_tensors(model, optimizers):
    """Return the state of the optimizers as {"parameter.key": tensor}, to be stored."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[p]}.{key}": tensor for optimizer in optimizers
            for p, state in optimizer.state.items() for key, tensor in state.items()}


def load_optimizer_tensors(model, optimizers, tensors, place):
    """Put back what optimizer_tensors returned; place(tensor, parameter) puts it where that is."""
    owners = {p: optimizer for optimizer in optimizers
              for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        p = model.get_parameter(parameter)
        owners[p].state[p][key] = place(tensor, p)
