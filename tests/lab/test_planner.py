"""planner.py: plans follow DeepSeek's laws and our own sweep, fit the memory, name bad budgets."""

import importlib.util
import math
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek.cost import flops_per_token
from nanoseek.lab import planner
from nanoseek.model import ModelConfig

TINY = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True}


def test_plan_follows_deepseeks_laws():
    planned = planner.plan(flops=1e19)
    compute = planned["law_flops"]
    each = flops_per_token(planned["config"], planned["context"])
    layers = each["total"] - each["head"]
    assert planned["tokens"] * each["total"] == pytest.approx(1e19)
    assert compute == pytest.approx(planned["tokens"] * layers)
    assert planned["learning_rate"] == pytest.approx(0.3118 / compute ** 0.1250)
    assert planned["batch_tokens"] == pytest.approx(0.2920 * compute ** 0.3271)
    # The nearest shape that can be built: within a fifth of the law's model and data.
    assert layers == pytest.approx(0.1715 * compute ** 0.5243, rel=0.2)
    assert planned["tokens"] == pytest.approx(5.8316 * compute ** 0.4757, rel=0.2)
    assert planned["steps"] * planned["rows"] * planned["context"] == pytest.approx(
        planned["tokens"], rel=0.01)
    assert not planned["warnings"]
    ModelConfig(**planned["config"])


@pytest.mark.parametrize("number", [0, 1])
@settings(max_examples=20, deadline=None)
@given(flops=st.floats(13, 21).map(lambda power: 10 ** power))
def test_plans_can_be_built_and_grow_with_the_budget(number, flops):
    law = planner.laws()[number]
    small, large = (planner.plan(flops=budget, vocab_size=2048, context=1024,
                                law=law) for budget in (flops, 8 * flops))
    for planned in (small, large):
        ModelConfig(**planned["config"])
        outside = not law.least <= planned["law_flops"] <= law.most
        assert bool(planned["warnings"]) == outside
    assert large["parameters"] > small["parameters"] and large["tokens"] > small["tokens"]
    assert large["learning_rate"] < small["learning_rate"]


def test_a_small_budget_follows_our_own_sweep():
    law = planner.laws()[0]
    middle = math.sqrt(law.least * law.most)
    planned = planner.plan(flops=2 * middle)  # half of the FLOPs, about, are the head's
    compute = planned["law_flops"]
    a, b = law.learning_rate
    assert planned["learning_rate"] == pytest.approx(a * compute ** b)
    assert planned["recipe"]["optimizer"] == "muon" and not planned["warnings"]
    assert planned["config"]["vocab_size"] == 4096 and planned["context"] == 256
    each = flops_per_token(planned["config"], 256)
    a, b = law.flops_per_token
    assert each["total"] - each["head"] == pytest.approx(a * compute ** b, rel=0.35)  # a rung off


def test_between_the_laws_the_nearer_one_is_used_and_says_so():
    for flops, law in zip((1e14, 2e16), planner.laws()):
        planned = planner.plan(flops=flops)
        assert planned["law"] == law.source and law.source in planned["warnings"][0]


@pytest.fixture(scope="module")
def sweep():
    path = pathlib.Path(__file__).parents[2] / "tutorials/experiments/scaling_sweep.py"
    spec = importlib.util.spec_from_file_location("scaling_sweep", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_our_law_is_the_fit_of_the_stored_sweep(sweep):
    stored, law = sweep.load(), planner.laws()[0]
    for name, (exponent, logarithm) in sweep.fit(stored).items():
        coefficient, power = getattr(law, name)
        assert coefficient == pytest.approx(math.exp(logarithm), rel=1e-3)
        assert power == pytest.approx(exponent, abs=1e-4)
    reach = [row["compute"] for row in sweep.optima(stored) if row["flops_per_token"]]
    assert (law.least, law.most) == pytest.approx((min(reach), max(reach)), rel=0.02)
    assert law.recipe.items() <= sweep.TRAINING.items()
    assert (law.vocab_size, law.context) == (sweep.VOCAB, sweep.ROW)


def test_the_sweep_finds_a_known_optimum(sweep):
    """Made-up scores that are parabolas around known points, no matter where the search begins."""
    wanted = {budget: (3e5 * 2 ** n, 2e-2 / 1.5 ** n, 1.7 * 1.6 ** n)
              for n, budget in enumerate(sweep.BUDGETS)}

    def score(budget, where):
        found = (sweep.flops(where[0])[0], *where[1:])
        return sum(math.log(x / best) ** 2 for x, best in zip(found, wanted[budget]))
    results = []
    while waiting := [(b, p) for b in sweep.BUDGETS for p in sweep.missing(results, b)]:
        budget, where = waiting[0]
        results.append({"budget": budget, **dict(zip(sweep.LADDERS, where)),
                        "bits_per_byte": score(budget, where)})
    assert len(results) < 60  # of the 3,136 points of the ladders
    for budget in sweep.BUDGETS[:-1]:
        found = [sweep.optimum(results, budget, axis) for axis in sweep.LADDERS]
        assert found == pytest.approx(wanted[budget])
    rate = sweep.fit(results)["learning_rate"][0]
    computes = [row["compute"] for row in sweep.optima(results)]
    assert rate == pytest.approx(math.log(1 / 1.5) / math.log(computes[1] / computes[0]), rel=0.1)


def test_budgets_in_dollars_and_seconds():
    planned = planner.plan(dollars=100, gpu="H100")
    assert planned["dollars"] == pytest.approx(100)
    assert planned["gpu_hours"] == pytest.approx(100 / 3)
    assert planned["flops"] == pytest.approx(100 / 3 * 3600 * 989e12 * planned["mfu"])
    timed = planner.plan(seconds=7200, gpu="H100", mfu=0.4, dollars_per_hour=2.5)
    assert timed["flops"] == pytest.approx(7200 * 989e12 * 0.4)
    assert timed["dollars"] == pytest.approx(5)
    here = planner.plan(seconds=100, flops_per_second=2e11)
    assert here["flops"] == pytest.approx(2e13)
    kept = planner.plan(seconds=100, flops_per_second=2e11, config=TINY)
    assert kept["config"] == TINY and kept["flops"] == here["flops"]


def test_a_plan_fits_its_memory():
    roomy, tight, none = (planner.plan(flops=1e20, memory_gb=gb) for gb in (1e4, 24, 1))
    assert roomy["rows_at_once"] == roomy["rows"] and roomy["checkpointing"] == "none"
    assert 1 <= tight["rows_at_once"] < tight["rows"]
    assert tight["rows"] % tight["rows_at_once"] == 0
    assert tight["memory"]["total"] <= 0.9 * 24e9
    assert none["rows_at_once"] is None and none["memory"]["total"] > 1e9
    assert "shard" in none["warnings"][0]


@pytest.mark.parametrize("call, words", [
    (lambda: planner.plan(flops=1e18, context=0), "context"),
    (lambda: planner.plan(flops=1e18, mfu=0.5), "mfu would change nothing: give gpu"),
    (lambda: planner.plan(dollars=9, gpu="H100", mfu=0), "mfu is 0"),
    (lambda: planner.plan(dollars=9, gpu="H100", mfu=math.nan), "mfu is nan"),
    (lambda: planner.plan(flops=1e18, memory_gb=0), "memory_gb is 0"),
    (lambda: planner.plan(flops=1e18, memory_gb=math.nan), "memory_gb is nan"),
    (lambda: planner.plan(flops=1e18, memory_gb=-3), "memory_gb is -3"),
    (lambda: planner.plan(flops=1e18, vocab_size=0), "vocab_size is 0"),
    (lambda: planner.plan(seconds=1e300, flops_per_second=1e11), "budget in FLOPs is inf"),
    (lambda: planner.plan(), "one budget"),
    (lambda: planner.plan(flops=1e18, dollars=3, gpu="H100"), "one budget"),
    (lambda: planner.plan(dollars=-3, gpu="H100"), "dollars is -3"),
    (lambda: planner.plan(flops=1e6), "too small"),
    (lambda: planner.plan(flops=1e40), "too large"),
    (lambda: planner.plan(dollars=3), "need a gpu"),
    (lambda: planner.plan(seconds=3), "need a gpu")])
def test_bad_budgets_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
