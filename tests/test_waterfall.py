"""The waterfall's arithmetic, its search and its padded rows; the trainings themselves take hours."""

import math
import pathlib
import statistics
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tutorials" / "experiments"))

import waterfall

from nanoseek.data import write_shards
from nanoseek.model import ModelConfig, Transformer, loss

COSTS = ("seconds", "tokens", "flops", "steps")


def a_run(tricks, steps, bits, seed=0, seconds=None):
    return {"tricks": list(tricks), "steps": steps, "seed": seed, "bits_per_byte": bits,
            **dict.fromkeys(COSTS, steps), "seconds": seconds or steps / 10, "peak_bytes": 5,
            "kv_bytes_per_token": 1, "preparation_seconds": 1.5}


@settings(deadline=None)
@given(power=st.floats(0.2, 2), seed=st.integers(0, 9))
def test_a_crossing_lies_between_its_neighbours_and_on_a_known_curve(power, seed):
    """Bits that fall with the logarithm of the steps are interpolated exactly."""
    def bits(steps):
        return waterfall.TARGET + power * math.log(100 / steps)
    runs = [a_run((), steps, bits(steps), seed) for steps in (300, 70, 150, 30)]
    found = waterfall.crossing(runs)
    assert found["steps"] == pytest.approx(100) and found["seconds"] == pytest.approx(10)
    assert found["total"] == pytest.approx(11.5)
    assert waterfall.crossing([run for run in runs if run["steps"] < 100]) is None


@settings(deadline=None)
@given(reached_at=st.integers(0, waterfall.HIGHEST), guess=st.integers(0, waterfall.HIGHEST),
       known=st.sets(st.integers(0, waterfall.HIGHEST)))
def test_the_search_ends_with_a_miss_beside_a_hit(reached_at, guess, known):
    trained = []

    def train(k):
        trained.append(k)
        return k >= reached_at
    waterfall.search({k: k >= reached_at for k in known}, train, guess)
    assert {reached_at, max(0, reached_at - 1)} <= {*trained, *known}
    assert len({*trained}) == len(trained) and not known & {*trained}  # nothing is trained twice


def test_a_trick_saves_or_costs_only_where_the_seeds_agree():
    runs = []
    for seed, plain, bpe, curated in ((0, 100, 10, 9), (1, 120, 12, 11), (2, 110, 11, 30)):
        for tricks, seconds in (((), plain), (("BPE",), bpe), (("BPE", "curation"), curated)):
            runs += [a_run(tricks, 50, 2 * waterfall.TARGET, seed, seconds / 2),
                     a_run(tricks, 75, waterfall.TARGET, seed, seconds)]
    rows = waterfall.rows_of(runs)
    assert [trick for trick, _, _ in rows] == [None, "BPE", "curation"]
    assert [said.split(":")[0] for _, _, said in rows] == ["", "saved", "neutral"]
    assert rows[1][1]["total"] == pytest.approx((12.5, 11.5, 13.5))  # with the preparation
    assert rows[1][1]["seconds"][0] == pytest.approx(statistics.median((10, 12, 11)))
    dear = [run | {"seconds": 9 * run["seconds"]} if run["tricks"] == ["BPE"] else run
            for run in runs if len(run["tricks"]) < 2]
    dear = [run | {"seconds": run["seconds"] * 2} if run["tricks"] else run for run in dear]
    assert waterfall.rows_of(dear)[1][2].startswith("cost")
    alone = [run for run in runs if run["seed"] == 0]  # 12.5 s, then 11.5 s: one seed proves nothing
    assert [said.split(":")[0] for _, _, said in waterfall.rows_of(alone)] == ["", "saved", "neutral"]


def test_recipes_are_a_ladder_and_the_full_one_without_each():
    ladder = waterfall.ladder()
    assert ladder[0] == () and set(ladder[-1]) == set(waterfall.TRICKS)
    assert all(len(set(more) - set(less)) == 1 for less, more in zip(ladder, ladder[1:]))
    without = waterfall.without_each()
    assert all(set(waterfall.FULL) - set(rest) == {trick} for trick, rest in without.items())
    assert tuple(without) == waterfall.FULL
    names = [waterfall.name_of(tricks) for tricks in ladder + [*without.values()][:-1]]
    assert len(set(names)) == len(names)
    setup = waterfall.SETUP | {"left_out": ["bf16"], "size": "tiny"}
    rungs, whole, later, key = waterfall.recipes_of(setup)
    assert set(rungs[0]) == set(waterfall.FULL) - {"bf16"} and rungs[-1] == whole
    assert set(whole) - set(rungs[0]) == set(later) == set(waterfall.LATER) and key == "seconds"
    assert not any({trick, waterfall.NEED.get(trick)} & set(rest) for trick, rest in later.items())
    rungs, whole, without, _ = waterfall.recipes_of(waterfall.SETUP | {"left_out": ["bf16"]})
    assert rungs[-1] == (*whole, "checkpointing") and "bf16" not in {*rungs[-1], *without}


def test_padding_changes_no_loss_and_every_document_is_met_once_an_epoch(tmp_path):
    texts = [chr(97 + n) * (3 + 2 * n) for n in range(6)]
    write_shards([{"text": text, "source": "s"} for text in texts], lambda text: list(text.encode()),
                 tmp_path / "tokens", 257, 256)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=257, hidden_size=16, intermediate_size=24,
                                    initializer_range=0.3))
    met = []
    for inputs, targets in waterfall.padded_rows(tmp_path, 2, [99] * 3, seed=0):
        alone = []
        for row, wanted, count in zip(inputs, targets, (targets >= 0).sum(dim=1).tolist()):
            assert torch.equal(row[1:count], wanted[:count - 1])
            met.append(bytes(row[1:count].tolist()).decode())
            alone.append((loss(model, row[None, :count], wanted[None, :count]), count))
        expected = sum(value * count for value, count in alone) / sum(count for _, count in alone)
        torch.testing.assert_close(loss(model, inputs, targets), expected)
    assert sorted(met) == sorted(texts)
    inputs, *_ = next(waterfall.padded_rows(tmp_path, 2, [4], seed=0))
    assert inputs.shape[1] <= 4  # longer ones are cut
