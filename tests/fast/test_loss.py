"""fast/loss.py: torch's cross-entropy of the logits, gradients included, without the logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek import model as chapter
from nanoseek.fast import loss as fast, speed_up
from test_model import build, random_ids, relative_difference, saved_bytes


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 9), words=st.integers(1, 30),
       chunk=st.integers(1, 12), scale=st.sampled_from([1.0, 100.0]), seed=st.integers(0, 99))
def test_loss_and_gradients_equal_torchs(rows, width, words, chunk, scale, seed):
    """Wherever the borders of the chunks lie, and however sure the model is."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(rows, width, generator=generator)).requires_grad_()
    weight = torch.randn(words, width, generator=generator).requires_grad_()
    targets = torch.randint(words, (rows,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "LEAST_ROWS", 1)
        patch.setattr(fast, "LOGITS_CHUNK", chunk * words)
        found = fast.LinearCrossEntropy.apply(hidden, weight, targets, torch.float32)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(3 * found, (hidden, weight)),
                          torch.autograd.grad(3 * exact, (hidden, weight))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_models_loss_equals_the_chapters(monkeypatch, tied, precision):
    monkeypatch.setattr(fast, "LEAST_ROWS", 1)
    monkeypatch.setattr(fast, "LOGITS_CHUNK", 7 * 97)  # seven rows; the last chunk is shorter
    model = build(chapter, tie_word_embeddings=tied, initializer_range=0.05).train()
    ids = random_ids(model.config, 4, 33)
    some = ids[:, 1:].masked_fill(
        torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) > 0.6, -100)
    limit = 1e-5 if precision == torch.float32 else 3e-2
    for targets in (ids[:, 1:], some):
        results = []
        for head in (chapter.Head, fast.FastHead):
            model.lm_head.__class__ = head
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                value = chapter.loss(model, ids[:, :-1], targets)
            results.append((value, *torch.autograd.grad(value, list(model.parameters()))))
        assert results[1][0].dtype == torch.float32
        assert all(relative_difference(found, expected) < limit
                   for expected, found in zip(*results))


def test_no_target_that_counts_gives_nan():
    model, ids = speed_up(build(chapter)), torch.tensor([[1, 2]])
    assert chapter.loss(model, ids, torch.full_like(ids, -100)).isnan()


def test_small_gradients_survive_fp16_when_the_loss_is_scaled():
    """Of 4096 tokens each counts 1/4096: were the mean taken before the products, and not after,
    most of the vocabulary's gradients would fall below what fp16 can hold."""
    torch.manual_seed(0)
    rows = 4096
    model = speed_up(build(chapter, vocab_size=512, initializer_range=0.02, num_hidden_layers=1))
    ids = torch.randint(512, (rows // 32, 33))
    exact = chapter.loss(model, ids[:, :-1], ids[:, 1:])
    expected = torch.autograd.grad(exact, list(model.parameters()))
    with torch.autocast("cpu", torch.float16):
        scaled = chapter.loss(model, ids[:, :-1], ids[:, 1:]) * 65536
    found = torch.autograd.grad(scaled, list(model.parameters()))
    for one, other in zip(found, expected):
        assert relative_difference(one / 65536, other) < 2e-2


def test_an_overflow_in_fp16_reaches_the_gradients():
    """A loss scaled too far must give inf or nan, which a loss scaler looks for, not a wrong
    finite number."""
    model, ids = speed_up(build(chapter)), random_ids(build(chapter).config, 2, 33)
    with torch.autocast("cpu", torch.float16):
        scaled = chapter.loss(model, ids[:, :-1], ids[:, 1:]) * 2.0 ** 40
    scaled.backward()
    assert not all(p.grad.isfinite().all() for p in model.parameters())


def test_only_the_gradients_are_kept_for_backward():
    """The logits of the chapter stay alive; here two tensors without a vocabulary's width a row."""
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (2000, 500))
    targets, saved = torch.randint(500, (2000,)), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        fast.LinearCrossEntropy.apply(hidden, weight, targets, torch.float32)
    assert sorted(tensor.numel() for tensor in saved) == [500 * 8, 2000 * 8]
    model, bytes_kept = build(chapter).train(), []
    for head in (chapter.Head, fast.FastHead):
        model.lm_head.__class__ = head
        bytes_kept.append(saved_bytes(model, random_ids(model.config, 4, 40)))
    assert bytes_kept[0] == bytes_kept[1]  # before the head both keep the same
