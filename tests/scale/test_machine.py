"""machine.py: threads and precision by measurement, which moves no weight."""

import pytest
import torch

from nanoseek.model import Transformer
from nanoseek.scale import machine
from small_run import MODEL


def test_measuring_moves_no_weight_and_picks_the_faster(tmp_path, monkeypatch):
    model = Transformer(MODEL)
    before = [p.clone() for p in model.parameters()]
    device = torch.device("cpu")
    assert machine.choose_precision(model, device, 2, 16)[0] in ("fp32", "bf16")
    assert min(machine.step_times(model, device, "fp16", 2, 16, seconds=0.0)) > 0
    assert all(torch.equal(p, q) and q.grad is None for p, q in zip(before, model.parameters()))
    pace = {"fp32": 1.0, "bf16": 0.5}
    monkeypatch.setattr(machine, "step_times", lambda *given: [pace[given[2]], 9.0])
    assert machine.choose_precision(model, device, 2, 16)[0] == "bf16"
    pace["bf16"] = 0.95  # not worth its lost digits
    assert machine.choose_precision(model, device, 2, 16)[0] == "fp32"


@pytest.mark.parametrize("cores, seconds, best", [
    (8, {8: 3.0, 4: 2.0, 2: 4.0}, 4), (2, {2: 1.0, 1: 1.5}, 2), (2, {2: 9.0, 1: 1.0}, 1),
    (4, {4: 3.0, 2: 2.0, 1: 1.0}, 1), (1, {1: 1.0}, 1)])
def test_threads_are_halved_while_that_is_faster(monkeypatch, cores, seconds, best):
    now = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    tried = []

    def step_times(*_):
        tried.append(torch.get_num_threads())
        return [0.1, seconds[tried[-1]], 9.0]
    monkeypatch.setattr(machine, "step_times", step_times)
    try:
        assert machine.choose_threads(None, 2, 16)[0] == best
        assert tried == list(seconds)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the most that the reader allows
        seconds[1] = 1.0
        assert machine.choose_threads(None, 2, 16) == (1, {1: 1.0})
    finally:
        torch.set_num_threads(now)


@pytest.mark.parametrize("bf16, tries", [([9.0], 1), (TypeError("no bf16 here"), 1), ([1.5], 3)])
def test_a_device_that_has_no_bf16_or_only_imitates_it_is_found_out_soon(monkeypatch, bf16, tries):
    asked = []

    def step_times(model, device, precision, rows, row_length):
        asked.append(precision)
        if precision == "bf16" and isinstance(bf16, Exception):
            raise bf16
        return bf16 if precision == "bf16" else [1.0]
    monkeypatch.setattr(machine, "step_times", step_times)
    assert machine.choose_precision(None, torch.device("cpu"), 2, 16)[0] == "fp32"
    assert asked.count("bf16") == tries == asked.count("fp32")
