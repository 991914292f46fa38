"""distributed.py on two gloo ranks on the CPU: the losses of one, resumes across, clean ends."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nanoseek import train  # noqa: E402
from nanoseek.checkpoint import newest_intact  # noqa: E402
from nanoseek.model import ModelConfig  # noqa: E402
from nanoseek.scale import run as run_module  # noqa: E402
from nanoseek.scale.folder import read_log  # noqa: E402
from small_run import command, make_run, settings  # noqa: E402

WAYS = {"ddp": {"optimizer": "muon", "accumulation": 2, "batch_ramp": "2:0.4"},
        "fsdp": {"optimizer": "adamw", "accumulation": 2, "parallel": "fsdp"},
        "fsdp in bf16": {"optimizer": "adamw", "parallel": "fsdp", "precision": "bf16",
                         "activation_checkpointing": "full"}}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(jobs):
    """What each rank does: every job in turn, a process group for each; write what was refused."""
    run_module.measure_ceiling = lambda **_: 1e11
    real = train.train_step
    for job in jobs:
        os.environ["MASTER_PORT"] = str(job["port"])

        def step(run):
            if run.step + 1 == job.get("stop") and run.ranks.rank == 1:  # only one is asked
                os.kill(os.getpid(), signal.SIGTERM)
            return real(run)
        train.train_step = step
        folder = pathlib.Path(job["folder"])
        model = ModelConfig(**job["model"])
        try:
            train.train(settings(folder, model, **job["changes"]), resume=True)
        except ValueError as error:
            (folder / f"refused-{os.environ['RANK']}").write_text(str(error))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folders of all jobs, run on two ranks, by name; and those of single ranks."""
    import dataclasses
    base = tmp_path_factory.mktemp("ranks")
    folders, jobs = {}, []

    def add(name, changes, resumes=None, **job):
        folder, model = make_run(base / name) if resumes is None else (folders[resumes], None)
        folders[name] = folder
        jobs.append({"folder": str(folder), "changes": changes, "port": free_port(),
                     "model": model and dataclasses.asdict(model), **job})
        if model is None:
            jobs[-1]["model"] = next(j for j in jobs if j["folder"] == str(folder))["model"]
    for way, changes in WAYS.items():
        add(way, changes)
    for way in ("ddp", "fsdp"):
        add(f"{way} stopped", WAYS[way], stop=7)
    add("muon sliced", {"parallel": "fsdp"})
    add("fp16 sliced", {"parallel": "fsdp", "optimizer": "adamw", "precision": "fp16"})
    add("undivided", {"batch_size": 3})
    add("undivided ramp", {"batch_ramp": "3:0.5"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure_ceiling", lambda **_: 1e11)
        for way in WAYS:
            folder, model = make_run(base / f"{way} alone")
            folders[f"{way} alone"] = folder
            train.train(settings(folder, model, **WAYS[way]))
        for way in ("ddp", "fsdp"):  # stopped on one rank, to go on with two
            folder, model = make_run(base / f"{way} grows")
            folders[f"{way} grows"] = folder
            real = train.train_step

            def step(run):
                if run.step == 6:
                    os.kill(os.getpid(), signal.SIGTERM)
                return real(run)
            with pytest.MonkeyPatch.context() as stop:
                stop.setattr(train, "train_step", step)
                train.train(settings(folder, model, **WAYS[way]))
            assert len(rows(folder)) == 7
            jobs.append({"folder": str(folder), "changes": WAYS[way], "port": free_port(),
                         "model": dataclasses.asdict(model)})
        (base / "jobs.json").write_text(json.dumps(jobs))
        ranks = [subprocess.Popen(
            [sys.executable, __file__, str(base / "jobs.json")], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                 "MASTER_ADDR": "127.0.0.1"}) for rank in (0, 1)]
        said = [process.communicate(timeout=240)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
        assert all(len(rows(folders[f"{way} stopped"])) == 7 for way in ("ddp", "fsdp"))
        for way in ("ddp", "fsdp"):  # saved by two ranks, to go on with one
            folder = folders[f"{way} stopped"]
            model = ModelConfig(**next(
                job["model"] for job in jobs if job["folder"] == str(folder)))
            train.train(settings(folder, model, **WAYS[way]), resume=True)
    return folders, said


def rows(folder):
    return read_log(folder)


def losses(folder):
    return [row["loss"] for row in rows(folder)]


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_have_the_loss_curve_of_one(done, way):
    folders, _ = done
    one, two = rows(folders[f"{way} alone"]), rows(folders[way])
    assert len(one) == len(two) == 12 and one[-1]["loss"] < one[0]["loss"]
    # bf16 keeps 8 bits; autocast and FSDP round at different places.
    close = {"rel": 5e-3} if "bf16" in way else {"rel": 1e-5}
    for key in ("loss", "gradient_norm"):
        wider = {"rel": 10 * close["rel"]} if key == "gradient_norm" else close
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], **wider)
    for row, other in zip(one, two):
        assert row["tokens"] == other["tokens"] and row["learning_rate"] == other["learning_rate"]
        if "held_out" in row:
            assert other["held_out"] == pytest.approx(row["held_out"], **close)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("moved", ["stopped", "grows"])
def test_a_run_goes_on_with_another_number_of_ranks(done, way, moved):
    folders, _ = done
    assert losses(folders[f"{way} {moved}"]) == pytest.approx(losses(folders[f"{way} alone"]),
                                                             rel=1e-5)


def test_two_ranks_leave_one_ordinary_folder(done):
    folders, said = done
    for way in ("ddp", "fsdp"):
        assert (folders[way] / "cost.json").is_file()
        newest = [newest_intact(folders[name]) for name in (way, f"{way} alone")]
        found = [sorted((path.name, path.stat().st_size) for path in folder.iterdir()
                        if path.suffix == ".safetensors" or path.name == "config.json")
                 for folder in newest]
        assert found[0] == found[1] and newest[0].name == newest[1].name
    assert "equal but for rounding, since these changed: ranks from 1 to 2" in said[0]
    assert said[1].count("step ") == 0  # the first rank speaks for both


@pytest.mark.parametrize("name, message", [
    ("muon sliced", "Muon needs whole matrices"), ("fp16 sliced", "no fp16"),
    ("undivided", "2 ranks must divide the batch"),
    ("undivided ramp", "2 ranks must divide rows")])
def test_what_ranks_cannot_do_is_one_clear_line(done, name, message):
    folders, _ = done
    for rank in (0, 1):
        said = (folders[name] / f"refused-{rank}").read_text()
        assert message in said and "\n" not in said


def test_a_killed_rank_ends_all_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    folder, _ = make_run(tmp_path / "r")
    # torchrun, spelt so that it is this Python's.
    under_torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                      "--nproc_per_node", "2", "-m"]
    train_command = ["nanoseek.train", *command(folder, "--steps", "100000")[3:]]
    process = subprocess.Popen(under_torchrun + train_command, cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.monotonic() + 120
    while len(rows(folder)) < 13 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    children = [int(pid) for pid in pathlib.Path(
        f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    ranks = {int(re.search(rb"\0RANK=(\d)", pathlib.Path(f"/proc/{pid}/environ").read_bytes())[1]):
             pid for pid in children if b"\0RANK=" in
             pathlib.Path(f"/proc/{pid}/environ").read_bytes()}
    os.kill(ranks[1], signal.SIGKILL)
    said, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert "another rank has ended" in errors
    # What was saved before is intact, and one process goes on from it.
    steps = int(newest_intact(folder).name[5:])
    assert steps >= 10
    before = [(row["step"], row["loss"]) for row in rows(folder)]
    monkeypatch.setattr(run_module, "measure_ceiling", lambda **_: 1e11)
    real = train.train_step

    def step(run):
        if run.step == before[-1][0] + 3:  # beyond all that the ranks logged
            os.kill(os.getpid(), signal.SIGINT)
        return real(run)
    monkeypatch.setattr(train, "train_step", step)
    assert train.main(command(folder, "--steps", "100000")[3:]) == 130
    assert f"going on at step {steps}" in capsys.readouterr().out
    after = {row["step"]: row["loss"] for row in rows(folder)}
    for step, loss in before:
        assert after.get(step, loss) == pytest.approx(loss, rel=1e-4)


if __name__ == "__main__":
    work(json.loads(pathlib.Path(sys.argv[1]).read_text()))
