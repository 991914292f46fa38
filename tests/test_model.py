"""model.py against transformers' Llama, and the invariants of a causal decoder."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

MODULE = "nanoseek.model"

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}


def build(module, seed=0, **changes):
    torch.manual_seed(seed)
    return module.Transformer(module.ModelConfig(**{**SMALL, "initializer_range": 0.3,
                                                    **changes})).eval()


def random_ids(config, batch, length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def hugging_face(model):
    """Build transformers' Llama with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    fields = dataclasses.asdict(model.config)
    fields["head_dim"] = model.config.head_size
    theta = fields.pop("rope_theta")
    reference = LlamaForCausalLM(LlamaConfig(
        **fields, rope_parameters={"rope_type": "default", "rope_theta": theta})).eval()
    reference.load_state_dict(model.state_dict())
    return reference


@pytest.mark.contract
@pytest.mark.parametrize("changes", [
    {"num_key_value_heads": 4}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1},
    {"tie_word_embeddings": False}, {"rope_theta": 500000.0}, {"head_dim": 12},
    {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 51}])
def test_logits_equal_transformers(module, changes):
    model = build(module, **changes)
    ids = random_ids(model.config, 3, 40)
    with torch.no_grad():
        ours, theirs = model(ids), hugging_face(model)(ids).logits
    assert ours.shape == (3, 40, model.config.vocab_size)
    assert ((ours - theirs).norm() / theirs.norm()).item() <= 1e-5


@pytest.mark.contract
def test_loss_and_gradients_equal_plain_cross_entropy(module, monkeypatch):
    model = build(module)
    ids = random_ids(model.config, 4, 33)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    plain = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, list(model.parameters()))
    # Chunks of 7 rows, the last one shorter: their borders must not show.
    monkeypatch.setattr(module, "LOGITS_CHUNK", 7 * model.config.vocab_size, raising=False)
    value = module.loss(model, inputs, targets)
    found = torch.autograd.grad(value, list(model.parameters()))
    torch.testing.assert_close(value, plain)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.contract
@settings(max_examples=15, deadline=None)
@given(groups=st.sampled_from([1, 2, 4]), length=st.integers(2, 24), data=st.data())
def test_a_changed_future_token_leaves_the_past_alone(module, groups, length, data):
    model = build(module, num_key_value_heads=4 // groups)
    ids = random_ids(model.config, 1, length)
    place = data.draw(st.integers(1, length - 1))
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + 1) % model.config.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place])
    assert not torch.allclose(before[:, place:], after[:, place:])


@pytest.mark.contract
def test_grouped_query_attention_equals_multi_head_with_copied_heads(module):
    grouped = build(module, num_key_value_heads=2)
    full = build(module, num_key_value_heads=4)
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:  # head h reads what was head h // 2
            heads = tensor.view(2, grouped.config.head_size, -1)
            weights[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = random_ids(grouped.config, 2, 20)
    with torch.no_grad():
        torch.testing.assert_close(grouped(ids), full(ids))


@settings(max_examples=15, deadline=None)
@given(shift=st.integers(0, 400), gap=st.integers(0, 50), seed=st.integers(0, 99))
def test_rope_depends_on_relative_position_only(module, shift, gap, seed):
    config = module.ModelConfig(**SMALL)
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, config.head_size, generator=generator, dtype=torch.float64)

    def product(at_q, at_k):
        turned = [module.rotate(x, *module.rotary_table(config, torch.tensor([at])))
                  for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum()
    torch.testing.assert_close(product(gap + shift, shift), product(gap, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.contract
def test_packed_documents_do_not_see_each_other(module):
    model = build(module)
    ids = random_ids(model.config, 1, 30)
    document_ids = torch.tensor([[0] * 11 + [1] * 19])
    with torch.no_grad():
        packed = model(ids, document_ids)
        alone = torch.cat((model(ids[:, :11]), model(ids[:, 11:])), dim=1)
    # RoPE sees only distances, so a document may begin anywhere in its row.
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.contract
@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=5), kv_heads=st.sampled_from([1, 2, 4]))
def test_cached_logits_equal_uncached(module, parts, kv_heads):
    model = build(module, num_key_value_heads=kv_heads)
    ids = random_ids(model.config, 2, sum(parts))
    cache = module.KVCache(model.config, 2, sum(parts))
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.contract
def test_activation_checkpointing_gives_the_same_gradients_for_fewer_saved_bytes(module):
    model = build(module).train()
    ids = random_ids(model.config, 4, 41)

    def gradients_and_bytes(switch):
        model.activation_checkpointing = switch
        saved = [0]

        def pack(tensor):
            saved[0] += tensor.numel() * tensor.element_size()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = module.loss(model, ids[:, :-1], ids[:, 1:])
        return torch.autograd.grad(value, list(model.parameters())), saved[0]
    (plain, plain_bytes), (less, less_bytes) = gradients_and_bytes(False), gradients_and_bytes(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, less))
    assert less_bytes < plain_bytes / 2


def test_bf16_autocast_is_near_fp32_and_keeps_fp32_weights(module):
    model = build(module, initializer_range=0.05)
    ids = random_ids(model.config, 2, 33)
    exact = module.loss(model, ids[:, :-1], ids[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        rough = module.loss(model, ids[:, :-1], ids[:, 1:])
    rough.backward()
    assert abs(rough.item() / exact.item() - 1) < 1e-2
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("preset, billions", [("deepseek-llm-7b", 6.910),
                                              ("deepseek-llm-67b", 67.425)])
def test_published_shapes_have_the_published_size(module, preset, billions):
    with torch.device("meta"):
        model = module.Transformer(module.PRESETS[preset])
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions


@pytest.mark.contract
@pytest.mark.parametrize("changes, message", [
    ({"hidden_size": 30}, "hidden_size 30"), ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ({"head_dim": 7}, "head_dim 7 is odd"), ({"vocab_size": 0}, "vocab_size is 0")])
def test_shapes_that_do_not_fit_are_refused(module, changes, message):
    with pytest.raises(ValueError, match=message):
        module.ModelConfig(**{**SMALL, **changes})


@pytest.mark.contract
def test_ids_out_of_range_and_long_texts_are_refused(module):
    model = build(module)
    with pytest.raises(ValueError, match="97 is outside the vocabulary"):
        model(torch.tensor([[5, 97]]))
    with pytest.raises(ValueError, match="49 positions exceed max_position_embeddings 48 by 1"):
        model(random_ids(model.config, 1, 49))
    cache = module.KVCache(model.config, 1, 48)
    model(random_ids(model.config, 1, 40), cache=cache)
    with pytest.raises(ValueError, match="by 2"):
        model(random_ids(model.config, 1, 10), cache=cache)
