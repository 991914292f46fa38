"""optim.py against torch's own Muon and AdamW, and the schedules' published corners."""

import json

import pytest
import torch

from nanoseek.model import ModelConfig, Transformer
from nanoseek.scale import folder

MODULE = "nanoseek.optim"
SHAPES = [(16, 40), (40, 16), (16, 16), (16, 16), (8, 24)]


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.contract
def test_muon_equals_torch_muon(module):
    ours, theirs = matrices(), matrices()
    one = module.Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95,
                             adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in ours]
    for seed in range(5):
        for parameters, optimizer in ((ours, one), (theirs, other)):
            give_gradients(parameters, seed)
            optimizer.step()
    for p, q, before in zip(ours, theirs, start):
        # torch runs Newton-Schulz in bf16 (8 bits of mantissa), ours in fp32.
        moved, apart = (q - before).norm(), (p - q).norm()
        assert apart / moved < 0.01


@pytest.mark.contract
def test_newton_schulz_brings_all_singular_values_near_one(module):
    generator = torch.Generator().manual_seed(3)
    batch = torch.randn(6, 12, 30, generator=generator)
    values = torch.linalg.svdvals(module.newton_schulz(batch))
    assert values.min() > 0.6 and values.max() < 1.3
    # Each matrix of the batch is treated on its own.
    torch.testing.assert_close(module.newton_schulz(batch)[2:3], module.newton_schulz(batch[2:3]),
                               rtol=1e-4, atol=1e-5)


def test_muon_refuses_vectors(module):
    with pytest.raises(ValueError, match="Muon takes matrices"):
        module.Muon([torch.nn.Parameter(torch.ones(3))])


@pytest.mark.contract
def test_multi_step_has_deepseek_corners(module):
    factors = [module.schedule_factor("multi_step", step, 1000, 20) for step in range(1000)]
    assert factors[0] == 1 / 20 and factors[19] == 1.0
    assert factors[799] == 1.0 and factors[800] == 0.316
    assert factors[899] == 0.316 and factors[900] == 0.1 and factors[999] == 0.1


@pytest.mark.contract
@pytest.mark.parametrize("schedule, last", [("cosine", 0.1), ("wsd", 0.0), ("linear", 0.0),
                                            ("constant", 1.0)])
def test_other_schedules_start_and_end_where_they_should(module, schedule, last):
    factors = [module.schedule_factor(schedule, step, 1000, 10) for step in range(10, 1001)]
    assert factors[0] == pytest.approx(1.0) and factors[-1] == pytest.approx(last)
    assert all(a >= b for a, b in zip(factors, factors[1:]))


def test_unknown_names_are_refused(module):
    with pytest.raises(ValueError, match="unknown schedule 'stairs'"):
        module.schedule_factor("stairs", 1, 10, 5)  # during the warm-up already
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        module.build_optimizers(torch.nn.Linear(2, 2), "sgd", 1e-3, 0.1)


class Toy(torch.nn.Module):
    """An embedding, one layer, a norm, as the model's are called."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(11, 8)
        self.model.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8, bias=False)])
        self.model.norm = torch.nn.Parameter(torch.ones(8))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_put_back_gives_the_same_steps_bit_for_bit(module, name):
    def train(model, optimizers, seeds):
        for seed in seeds:
            give_gradients(list(model.parameters()), seed)
            for optimizer in optimizers:
                optimizer.step()
    torch.manual_seed(0)
    whole, resumed = Toy(), Toy()
    resumed.load_state_dict(whole.state_dict())
    first = module.build_optimizers(whole, name, 0.01, 0.1)
    train(whole, first, range(3))
    stored = {k: v.clone() for k, v in folder.optimizer_tensors(whole, first).items()}
    resumed.load_state_dict(whole.state_dict())
    second = module.build_optimizers(resumed, name, 0.01, 0.1)
    folder.load_optimizer_tensors(resumed, second, stored, lambda tensor, p: tensor)
    train(whole, first, range(3, 6))
    train(resumed, second, range(3, 6))
    for p, q in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(p, q)


def test_norms_and_embeddings_do_not_decay(module):
    torch.manual_seed(0)
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in module.build_optimizers(model, "adamw", 0.1, 0.5):
        optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] * (0.95 if ".layers." in name else 1.0)
        torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize("beta2", [0.5, 0.99])
def test_embeddings_move_by_adam_s_formula(module, beta2):
    """Kingma and Ba (arXiv 1412.6980), algorithm 1, written out."""
    model, rate, factor = Toy(), 0.01, 3.0
    row = model.model.embed_tokens.weight
    expected, first, second = row.detach().double(), 0.0, 0.0
    optimizers = module.build_optimizers(model, "muon", rate, 0.1, factor, beta2)
    for step in range(1, 5):
        give_gradients(list(model.parameters()), step)
        first = 0.9 * first + 0.1 * row.grad.double()
        second = beta2 * second + (1 - beta2) * row.grad.double() ** 2
        expected -= rate * factor * (first / (1 - 0.9 ** step)) \
            / ((second / (1 - beta2 ** step)).sqrt() + 1e-8)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(row.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.contract
def test_ramps_rise_stage_by_stage(module):
    stages = module.parse_ramp("2:0.1,4:0.3")
    assert [module.ramp_value(stages, step / 10, 8) for step in range(5)] == [2, 4, 4, 8, 8]
    assert module.ramp_value(module.parse_ramp(""), 0.0, 8) == 8


@pytest.mark.contract
@pytest.mark.parametrize("text", ["4", "4:x", "0:0.1", "4:0.2,2:0.5", "2:0.5,4:0.2", "2:1", "2:nan",
                                  "2:0.1,", "-1:0.5"])
def test_ramps_that_make_no_sense_are_refused(module, text):
    with pytest.raises(ValueError, match="ramp"):
        module.parse_ramp(text)


@pytest.mark.contract
def test_the_loss_scale_moves_as_torch_s_does(module, monkeypatch):
    monkeypatch.setattr(module, "GROW_AFTER", 3)
    ours = module.LossScale(True)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], 0.0)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for overflow in (torch.rand(60, generator=generator) < 0.25).tolist():
        p.grad = theirs.scale(torch.full((1,), float("inf") if overflow else 1.0))
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflow)
        assert ours.value == theirs.get_scale()
        seen.add(ours.value)
    assert len(seen) > 3 and ours.overflows > 5
    again = module.LossScale(True)
    again.load_state_dict(ours.state_dict())
    assert again.state_dict() == ours.state_dict()
    plain = module.LossScale(False)
    plain.update(True)
    assert plain.value == 1.0


def test_only_losses_and_gradients_that_are_not_finite_are_skipped(module):
    watch = module.LossWatch(2.0)
    losses = [5 - 0.05 * i + 0.3 * (i % 3) for i in range(60)]
    assert not any(watch.reason_to_skip(loss, 1.0) for loss in [*losses, 60.0])
    assert "loss is nan" in watch.reason_to_skip(float("nan"), 1.0)
    assert "gradient inf" in watch.reason_to_skip(3.0, float("inf")) and watch.in_a_row == 3
    again = module.LossWatch(2.0)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict(), allow_nan=False)))
    for loss, in_a_row in ((6.0, 4), (3.0, 0), (6.0, 1)):
        for each in (watch, again):
            assert each.reason_to_skip(loss, 1.0) is None and each.in_a_row == in_a_row


@pytest.mark.parametrize("period", [2, 3, 20])
def test_hard_batches_are_no_divergence(module, period):
    watch = module.LossWatch(2.0)
    for step in range(400):
        hard = step > 40 and step % period == 0
        assert watch.reason_to_skip(9.0 if hard else 2.0, 1.0) is None and watch.in_a_row == hard
    assert {*watch.recent} == {2.0}  # they do not raise what is usual


@pytest.mark.parametrize("bad", [9.0, float("nan"), float("inf")])
def test_losses_that_stay_bad_are_divergence(module, bad):
    """Also where as high ones were met before; without a limit, or in the first steps, no leap is."""
    watch, free, early = module.LossWatch(2.0), module.LossWatch(0.0), module.LossWatch(2.0)
    for loss in [2.0] * 40 + [9.0, 2.0] * 10 + [bad] * (module.PATIENCE + 1):
        assert watch.in_a_row <= module.PATIENCE
        watch.reason_to_skip(loss, 1.0)
        free.reason_to_skip(loss, 1.0)
    for loss in (1.0, 9.0):
        early.reason_to_skip(loss, 1.0)
    assert watch.in_a_row > module.PATIENCE and early.in_a_row == 0
    assert free.in_a_row == (0 if bad == 9.0 else module.PATIENCE + 1)


@pytest.mark.parametrize("changes", [
    {}, {"tie_word_embeddings": False}, {"vocab_size": 16, "tie_word_embeddings": False},
    {"vocab_size": 24, "tie_word_embeddings": False}, {"vocab_size": 16}])
def test_muon_takes_the_layers_matrices_of_a_transformer(module, changes):
    """Also where the vocabulary is as wide as the model, or as its MLP."""
    model = Transformer(ModelConfig(**{**dict(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1), **changes}))
    for optimizer, inside in zip(module.build_optimizers(model, "muon", 1e-3, 0.1), (True, False)):
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [
            id(p) for name, p in model.named_parameters()
            if (".layers." in name and p.ndim == 2) == inside]


def test_a_net_of_ones_own_needs_no_names(module):
    embedding, hidden, head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9)
    muon, adamw = module.build_optimizers(torch.nn.Sequential(embedding, hidden, head), "muon",
                                          1e-3, 0.1)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(hidden.weight)]
    assert len(adamw.param_groups[0]["params"]) == 4
    for name in ("muon", "adamw"):  # nothing for Muon
        before = embedding.weight.detach().clone()
        embedding.weight.grad = torch.ones(9, 4)
        for optimizer in module.build_optimizers(embedding, name, 1e-3, 0.1):
            optimizer.step()
        assert not torch.equal(embedding.weight, before)
