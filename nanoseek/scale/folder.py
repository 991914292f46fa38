"""What lies in a run's folder beside its checkpoints, and which settings it keeps.

    lock("runs/tiny")                            # refuses a second process that would train there
    rows = read_log("runs/tiny", step=240)       # of log.jsonl
    changed, as_planned = check_settings(config, state, branching=False)
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

from nanoseek.optim import CLIP, WEIGHT_DECAY

# What a run that goes on from a checkpoint may change of the settings stored there: what moves no
# weight,
HARMLESS = {"out", "tokens", "eval_every", "save_every", "keep", "branch_from"}
# what moves last bits only, which is said,
ROUNDING = {"accumulation", "activation_checkpointing", "compile", "device", "fast", "threads",
            "parallel"}
# in a branch also the plan of the steps to come,
PLAN = {"steps", "batch_size", "row_length", "batch_ramp", "length_ramp", "learning_rate",
        "schedule", "decay_share", "warmup_steps"}
# and how a step is taken; it then differs from a run that was planned so from its start.
FREE_IN_A_BRANCH = PLAN | {"weight_decay", "beta2", "clip", "spike"}
CONSTANT = {"clip": CLIP, "weight_decay": WEIGHT_DECAY}  # settings of old checkpoints


def as_json(config):
    """Return a TrainConfig as a flat dict, the model's fields among the others."""
    flat = dataclasses.asdict(config)
    return CONSTANT | flat.pop("model") | flat


def check_settings(config, state, branching):
    """Return (changes that only round otherwise, whether the past is as `config` plans it).

    state: that of the checkpoint to go on from. Raises ValueError naming every setting whose
    change would silently make the run another one.
    """
    # A setting that the checkpoint does not know came later, and its default is what was before.
    before, now = as_json(type(config)()) | state["config"], as_json(config)
    for name, automatic in (("precision", "auto"), ("threads", 0)):
        if now[name] in (automatic, state["choices"][name]):
            before[name] = now[name]  # what was measured is kept
    changed = {name: f"{name} from {before[name]} to {now[name]}" for name in now
               if before[name] != now[name] and name not in HARMLESS}
    allowed = ROUNDING | (FREE_IN_A_BRANCH if branching else set())
    if refused := [text for name, text in changed.items() if name not in allowed]:
        raise ValueError(f"a {'branch' if branching else 'resumed run'} keeps these settings; "
                         f"changed: {', '.join(refused)}")
    if branching and state["step"] >= config.steps:
        raise ValueError(f"steps {config.steps} ends before the branch begins, at step "
                         f"{state['step']}: raise --steps")
    old = dataclasses.replace(config, **{name: before[name] for name in PLAN})
    as_planned = state["as_planned"] and not changed.keys() & (FREE_IN_A_BRANCH - PLAN) and \
        all(config.plan(step) == old.plan(step) for step in range(state["step"]))
    return [text for name, text in changed.items() if name in ROUNDING], as_planned


@contextlib.contextmanager
def refusing_foreign_state():
    """Within it, a trainer.json that lacks something or holds something else is one clear line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("trainer.json of this checkpoint is not what this version writes "
                         f"({error!r}): start anew with another --out") from None


def find_tokenizer(tokens_folder, manifest):
    """Return the path of the tokenizer.json beside the tokens; check that it is theirs."""
    path = pathlib.Path(tokens_folder).parent / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: it belongs beside the tokens")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise ValueError(f"{path} is not the tokenizer that encoded {tokens_folder}: "
                         "build the tokens again")
    return path


def lock(folder):
    """Return the open lock file of a run; it frees itself when the process ends, however it ends.

    Raises ValueError when another process trains there.
    """
    file = (pathlib.Path(folder) / ".lock").open("w")
    with contextlib.suppress(ImportError, OSError):  # Windows, or a disk that knows no locks
        import fcntl
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process trains in {folder}: wait for it, or give another "
                             "--out") from None
    return file


def read_log(run, step=float("inf")):
    """Return the rows of a run's log.jsonl up to `step`, but for a line that a crash cut off."""
    path, rows = pathlib.Path(run) / "log.jsonl", []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["step"] <= step:
                    rows.append(row)
    return rows
