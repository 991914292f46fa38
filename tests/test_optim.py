"""optim.py against torch's own Muon and AdamW, and the schedules' published corners."""

import pytest
import torch

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


@pytest.mark.contract
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


@pytest.mark.contract
def test_unknown_names_are_refused(module):
    with pytest.raises(ValueError, match="unknown schedule 'stairs'"):
        module.schedule_factor("stairs", 5, 10, 0)
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        module.build_optimizers(torch.nn.Linear(2, 2), "sgd", 1e-3, 0.1)


class Toy(torch.nn.Module):
    """The parameter names that build_optimizers sorts by."""

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
    stored = {k: v.clone() for k, v in module.optimizer_tensors(whole, first).items()}
    resumed.load_state_dict(whole.state_dict())
    second = module.build_optimizers(resumed, name, 0.01, 0.1)
    module.load_optimizer_tensors(resumed, second, stored)
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
