"""Experts: against one token at a time, the rules of balance against their own words, a resume."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from deepseek_parts import PARTS, build_with
from nanoseek import train
from nanoseek.deepseek.experts import Experts, Mixture, Router, after_step
from nanoseek.model import ModelConfig, loss
from nanoseek.scale.machine import step_times
from small_run import final_weights, make_run, quick_ceiling, settings  # noqa: F401 (a fixture)

SOFTMAX = {"scoring_func": "softmax", "norm_topk_prob": False}


def one_at_a_time(mixture, x):
    """The same by the paper's words, for one token x (C), with numpy's sorting."""
    part, gate = mixture.gate.part, mixture.gate
    logits = (gate.weight @ x).detach().numpy()
    if part.scoring_func == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
        biased = scores + gate.e_score_correction_bias.numpy()
    else:
        scores = biased = np.exp(logits) / np.exp(logits).sum()
    size = part.n_routed_experts // part.n_group
    count = 2 if part.scoring_func == "sigmoid" else 1
    group_scores = [np.sort(biased[g * size:(g + 1) * size])[-count:].sum()
                    for g in range(part.n_group)]
    groups = np.argsort(group_scores)[-part.topk_group:]
    allowed = [e for e in range(part.n_routed_experts) if e // size in groups]
    chosen = sorted(allowed, key=lambda e: -biased[e])[:part.num_experts_per_tok]
    weights = scores[chosen]
    if part.norm_topk_prob:
        weights = weights / weights.sum()
    y = mixture.shared_experts(x)
    for e, weight in zip(chosen, weights):
        y = y + part.routed_scaling_factor * float(weight) * mixture.experts[e](x)
    return y


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_mixture_is_what_each_token_computes_alone(data):
    groups = data.draw(st.integers(1, 4))
    each = data.draw(st.integers(2, 5))
    top = data.draw(st.integers(1, groups))
    part = Experts(4, groups * each, data.draw(st.integers(1, top * each)),
                   data.draw(st.integers(1, 2)), groups, top, routed_scaling_factor=1.5,
                   **data.draw(st.sampled_from([{}, {"norm_topk_prob": False}, SOFTMAX])))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    mixture = Mixture(ModelConfig(hidden_size=6, num_attention_heads=1, num_key_value_heads=1),
                      part).double().eval()
    if part.scoring_func == "sigmoid":
        mixture.gate.e_score_correction_bias.normal_()
    x = torch.randn(2, 5, 6).double()
    alone = torch.stack([one_at_a_time(mixture, token) for token in x.flatten(0, 1)])
    assert torch.allclose(mixture(x), alone.view(x.shape), atol=1e-10)


def test_the_bias_moves_as_the_paper_says():
    model = build_with(*PARTS["v3 groups"]).train()
    router = model.model.layers[2].mlp.gate
    bias = router.e_score_correction_bias.numpy().copy()
    for _ in range(5):
        ids = torch.randint(61, (2, 30))
        seen = []
        hook = router.register_forward_hook(lambda module, inputs, out: seen.append(out[0]))
        for part in ids.split(1):  # two micro-batches are one step
            loss(model, part, part).backward()
        hook.remove()
        after_step(model)
        load = np.bincount(torch.cat(seen).flatten(), minlength=8)
        bias = bias + 0.001 * np.sign(load.mean() - load)
        assert np.allclose(router.e_score_correction_bias, bias, atol=1e-7)
    loss(model, ids, ids)
    after_step(model, taken=False)  # forgotten
    loss(model.eval(), ids, ids)  # scoring is not counted
    after_step(model)
    assert np.allclose(router.e_score_correction_bias, bias, atol=1e-7)


def test_the_bias_evens_out_the_load():
    """A router that prefers some experts: with the bias, the busiest is soon hardly above the mean."""
    torch.manual_seed(0)
    router = Router(6, Experts(4, 8, 2, bias_speed=0.002)).train()
    router.weight.data.normal_()
    x, busiest = torch.randn(1, 2000, 6) + 1, []
    for _ in range(400):
        router(x[0])
        busiest.append((router.load.max() / router.load.float().mean()).item())
        after_step(router)
    assert busiest[0] > 1.7 and max(busiest[-50:]) < 1.15


def test_the_loss_of_balance_is_that_of_the_paper():
    part = dataclasses.replace(PARTS["v2"][1], balance_loss=0.01)
    model = build_with(PARTS["v2"][0], part).train()
    ids, total = torch.randint(61, (2, 30)), 0.0
    value = loss(model, ids, ids)
    for layer in model.model.layers:
        found = []
        layer.mlp.gate.register_forward_hook(lambda gate, inputs, out: found.append((inputs, out)))
        with torch.no_grad():
            model(ids)
        (x,), (chosen, _) = found[-1]
        scores = (x @ layer.mlp.gate.weight.T).softmax(-1)
        f = torch.bincount(chosen.flatten(), minlength=8) * 8 / (3 * len(x))  # N'/(K'·T)·Σ
        total += 0.01 * (f * scores.mean(0)).sum().item()
    # Scoring in between counts nothing of it.
    assert value.item() == pytest.approx(loss(model.eval(), ids, ids).item() + total, rel=1e-5)
    value.backward()
    assert all(layer.mlp.gate.weight.grad.norm() > 0 for layer in model.model.layers)


def test_an_expert_that_nobody_visits_has_a_gradient_of_zero():
    model = build_with(None, Experts(8, 8, 2))
    for layer in model.model.layers:
        layer.mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.0] * 3 + [-9.0] + [0.0] * 4))
    ids = torch.randint(61, (4, 60))
    loss(model.train(), ids, ids).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and (".experts.3." in name) == (not p.grad.any()), name


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    parts = {"attention": PARTS["v3"][0], "feed_forward": dataclasses.replace(
        PARTS["v3"][1], bias_speed=0.05)}
    results = []
    for name, stops in (("whole", [12]), ("stopped", [5, 12])):
        folder, model = make_run(tmp_path / name)
        model = dataclasses.replace(model, **parts)
        for stop in stops:
            config = settings(folder, model, accumulation=2, save_every=5)
            patch = pytest.MonkeyPatch()
            if stop < 12:  # the machine goes off after a checkpoint
                step = train.train_step
                patch.setattr(train, "train_step", lambda run: step(run) if run.step < stop
                              else (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    train.train(config, resume=True)
                patch.undo()
            else:
                assert train.train(config, resume=True).step == 12
        results.append(final_weights(folder))
    assert results[0] == results[1]


def test_what_is_measured_before_a_run_is_not_counted():
    model = build_with(None, Experts(8, 8, 2)).train()
    step_times(model, torch.device("cpu"), "fp32", 2, 16, seconds=0)
    assert [layer.mlp.gate.load for layer in model.model.layers] == [0, 0, 0]


@pytest.mark.parametrize("changes, message", [
    ({"num_experts_per_tok": 17}, "num_experts_per_tok 17 exceeds the 16"),
    ({"n_group": 3}, "n_group 3 must divide"), ({"topk_group": 2}, "topk_group 2"),
    ({"n_group": 16, "topk_group": 16}, "two best"), ({"scoring_func": "relu"}, "scoring_func is 'relu'"),
    ({"n_routed_experts": 0}, "n_routed_experts is 0"), ({"bias_speed": -1.0}, "bias_speed is -1"),
    ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor is nan"),
    ({"scoring_func": "softmax"}, "norm_topk_prob"), ({"moe_intermediate_size": 1.5}, "1.5")])
def test_shapes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Experts(**changes)
