"""The scorer of tests/bench/laptop_record.py against a slow one that looks at single bytes."""

import math
import pathlib
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))

import laptop_record


@pytest.mark.parametrize("context, stride", [(256, 16), (63, 16), (40, 1)])
def test_every_byte_is_scored_once_and_sees_at_most_so_many_bytes(context, stride):
    sizes = np.random.default_rng(0).integers(1, 17, 3000)
    owner = np.repeat(np.arange(len(sizes)), sizes)  # the id of each byte
    scored, seen = np.zeros(len(owner), int), np.zeros(len(owner), int)
    for begin, first, end in laptop_record.byte_windows(sizes, context, stride):
        window_starts = int(np.argmax(owner == begin))
        for byte in np.flatnonzero((owner >= first) & (owner < end)):
            scored[byte] += 1
            seen[byte] = byte - window_starts
    assert (scored[owner == 0] == 0).all() and (scored[owner > 0] == 1).all()
    assert seen.max() <= context
    # Away from the beginning: all but what shares a window, one id cut off, and the id itself.
    assert seen[owner > context].min() >= context - stride - 2 * 16


def test_score_equals_one_forward_pass_for_each_token():
    torch.manual_seed(0)
    model = laptop_record.build(laptop_record.Recipe(40, 32, 1, 2, 4, 16), 40).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    random = np.random.default_rng(1)
    ids, of = random.integers(0, 40, 150), random.integers(1, 5, 40)
    sizes = of[ids]
    starts, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes)
    bits = math.log2(40)
    with torch.no_grad():
        # One token a window: each sees as much as it may.
        for i in range(1, len(ids)):
            begin = next(b for b in range(i) if ends[i] - 1 - starts[b] <= 30)
            logits = model(torch.from_numpy(ids[None, begin:i]))[0, -1]
            bits -= torch.log_softmax(logits, -1)[ids[i]].item() / math.log(2)
    pieces = [(ids[b:e], f - b - 1) for b, f, e in laptop_record.byte_windows(sizes, 30, 1)]
    found = laptop_record.bits_per_byte(model, ids, sizes, pieces, math.log2(40))
    assert found == pytest.approx(bits / sizes.sum(), abs=1e-5)


def test_rows_serve_each_part_once_in_an_epoch():
    rows = laptop_record.Rows(np.arange(1000), seed=0, rows=4, length=16)
    inputs, targets = zip(*(rows.take() for _ in range(15)))  # 60 of the 61 or 62 rows there are
    assert torch.equal(torch.cat(inputs) + 1, torch.cat(targets))
    assert len(torch.cat(inputs).flatten().unique()) == 60 * 16


def test_unknown_bytes_of_the_baseline_share_an_id_that_can_be_scored(capsys):
    bits, _ = laptop_record.baseline("abcdefgh" * 200, "abczéa" * 30, seed=0, steps=2)
    assert 3 < bits < 12  # about even over nine ids, and the choice among 248 for some
    assert "9 characters" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [
    (["{text}", "--seconds", "0"], "seconds"), (["{text}", "--seconds", "nan"], "seconds"),
    (["{text}"], "nothing to do"), (["{text}", "--seconds", "1"], "characters"),
    (["missing.txt", "--baseline"], "missing.txt"), (["{text}", "--seeds", "0"], "seeds"),
    (["{text}", "--table", "--times", "1,x"], "times")])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    path = tmp_path / "short.txt"
    path.write_text("too short")
    monkeypatch.setattr(sys, "argv", ["laptop_record", *(
        a.format(text=path) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        laptop_record.run(laptop_record.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error


def test_too_few_seconds_for_a_step_is_said():
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 20_000)))
    with pytest.raises(ValueError, match="0 steps fit into 0.001 seconds"):
        laptop_record.record(text, text[:1000], 0.001, seed=0)
