"""model.py against transformers' Llama, and the invariants of a causal decoder.

Models and shapes of these tests serve tests/fast, too.
"""

import dataclasses
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

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


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


def hugging_face(model):
    """Build transformers' Llama, or its Mistral for a sliding window, with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
    fields = dataclasses.asdict(model.config)
    fields["head_dim"] = model.config.head_size
    scaling, window = fields.pop("rope_scaling"), fields.pop("sliding_window")
    fields["rope_parameters"] = {
        "rope_theta": fields.pop("rope_theta"),
        **({"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"})}
    reference = MistralForCausalLM(MistralConfig(**fields, sliding_window=window)) if window else \
        LlamaForCausalLM(LlamaConfig(**fields))
    reference.load_state_dict(model.state_dict())
    return reference.eval()


def relative_difference(one, other):
    return ((one - other).norm() / other.norm()).item()


KINDS = [
    {"num_key_value_heads": 4}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1},
    {"tie_word_embeddings": False}, {"rope_theta": 500000.0}, {"head_dim": 12},
    {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 51},
    {"hidden_size": 35, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10,
     "intermediate_size": 7, "vocab_size": 3},
    {"rope_scaling": LLAMA3}, {"sliding_window": 5}, {"sliding_window": 1},
    {"sliding_window": 300, "num_key_value_heads": 1}]


@pytest.mark.contract
@pytest.mark.parametrize("changes", KINDS)
def test_logits_equal_transformers(module, changes):
    if "rope_scaling" in changes:
        changes = {**changes, "rope_scaling": module.RopeScaling(**changes["rope_scaling"])}
    # So long that a frequency wrong in its last bits would show.
    model = build(module, max_position_embeddings=700, **changes)
    reference = hugging_face(model)
    for batch, length in ((3, 40), (1, 600)):
        ids = random_ids(model.config, batch, length)
        with torch.no_grad():
            ours, theirs = model(ids), reference(ids).logits
        assert ours.shape == (batch, length, model.config.vocab_size)
        assert relative_difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize("changes", KINDS)
def test_bf16_logits_are_near_those_of_transformers(module, changes):
    if "rope_scaling" in changes:
        changes = {**changes, "rope_scaling": module.RopeScaling(**changes["rope_scaling"])}
    model = build(module, **{"initializer_range": 0.05, **changes})
    reference, ids = hugging_face(model), random_ids(model.config, 3, 40)
    with torch.no_grad():
        exact, theirs = reference(ids).logits, reference.bfloat16()(ids).logits.float()
        ours = model.bfloat16()(ids).float()
    # As near as two roundings of one number can be, and no farther from the truth than theirs.
    assert relative_difference(ours, theirs) <= 1e-2
    assert relative_difference(ours, exact) <= 1.2 * relative_difference(theirs, exact) + 1e-6


@pytest.mark.contract
def test_loss_and_gradients_equal_plain_cross_entropy(module):
    model = build(module)
    ids = random_ids(model.config, 4, 33)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    plain = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, list(model.parameters()))
    value = module.loss(model, inputs, targets)
    found = torch.autograd.grad(value, list(model.parameters()))
    torch.testing.assert_close(value, plain)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@st.composite
def shapes(draw):
    """Changes to SMALL: any number of heads and groups, even head_dim, layers, tied or not."""
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {"num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * groups,
            "head_dim": 2 * draw(st.integers(1, 8)), "hidden_size": draw(st.integers(4, 40)),
            "intermediate_size": draw(st.integers(1, 50)), "vocab_size": draw(st.integers(2, 99)),
            "num_hidden_layers": draw(st.integers(1, 3)),
            "tie_word_embeddings": draw(st.booleans()),
            "sliding_window": draw(st.sampled_from([None, None, 1, 3, 8, 17]))}


@pytest.mark.contract
@settings(max_examples=25, deadline=None)
@given(shape=shapes(), length=st.integers(2, 40), data=st.data())
def test_a_changed_future_token_leaves_the_past_alone(module, shape, length, data):
    model = build(module, **shape)
    ids = random_ids(model.config, 2, length)
    place = data.draw(st.integers(1, length - 1))
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + 1) % model.config.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place])
    torch.testing.assert_close(before[1], after[1])  # nor does another row notice
    assert not torch.equal(before[0, place], after[0, place])


@pytest.mark.contract
@settings(max_examples=20, deadline=None)
@given(shape=shapes(), length=st.integers(1, 40))
def test_grouped_query_attention_equals_multi_head_with_copied_heads(module, shape, length):
    grouped = build(module, **shape)
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    full = build(module, **{**shape, "num_key_value_heads": heads})
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:  # head h reads what was head h // groups
            copies = tensor.view(kv_heads, grouped.config.head_size, -1)
            weights[name] = copies.repeat_interleave(heads // kv_heads, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = random_ids(grouped.config, 2, length)
    with torch.no_grad():
        torch.testing.assert_close(grouped(ids), full(ids), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), length=st.integers(1, 40), documents=st.booleans())
def test_a_sliding_window_equals_a_masked_reference(module, shape, length, documents):
    window = shape["sliding_window"] or 6
    model = build(module, **{**shape, "sliding_window": window})
    plain = build(module, **{**shape, "sliding_window": None})
    ids = random_ids(model.config, 2, length)
    document_ids = torch.arange(length).div(7, rounding_mode="floor").expand(2, length) \
        if documents else None
    at = torch.arange(length)
    visible = (at <= at[:, None]) & (at[:, None] - at < window)
    if documents:
        visible = visible & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    real = torch.nn.functional.scaled_dot_product_attention

    def masked(q, k, v, mask=None, is_causal=False, enable_gqa=False):
        return real(q, k, v, visible, enable_gqa=enable_gqa)
    expected_gradients, gradients = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
        expected = plain(ids)
        expected_gradients = torch.autograd.grad(expected.square().mean(), plain.parameters())
    found = model(ids, document_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found.square().mean(), model.parameters())
    for one, other in zip(gradients, expected_gradients):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0.1, 0.9))
def test_targets_below_zero_do_not_count_in_the_loss(module, seed, share):
    """In value and gradients, against torch's cross-entropy with an ignored index."""
    model, generator = build(module).train(), torch.Generator().manual_seed(seed)
    ids = random_ids(model.config, 3, 13, seed)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) > share] = -100
    targets[0, 0] = 1
    expected = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    found = module.loss(model, inputs, targets)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for ours, torchs in zip(torch.autograd.grad(found, parameters),
                            torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-5)


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
@settings(max_examples=20, deadline=None)
@given(shape=shapes(), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_packed_documents_do_not_see_each_other(module, shape, lengths):
    model = build(module, **shape)
    ids = random_ids(model.config, 1, sum(lengths))
    document_ids = torch.repeat_interleave(torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = model(ids, document_ids)
        alone = torch.cat([model(piece) for piece in ids.split(lengths, dim=1)], dim=1)
    # RoPE sees only distances, so a document may begin anywhere in its row.
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.contract
@settings(max_examples=25, deadline=None)
@given(shape=shapes(), parts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_cached_logits_equal_uncached(module, shape, parts):
    model = build(module, **shape)
    ids = random_ids(model.config, 2, sum(parts))
    cache = module.KVCache(model.config, 2, sum(parts))
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-3, atol=1e-3)
    window = shape["sliding_window"] or sum(parts)  # what no position sees is not kept
    assert cache.keys.shape[3] == cache.values.shape[3] == min(window, sum(parts))


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=3),
       steps=st.integers(1, 12), scaled=st.booleans())
def test_one_position_at_a_time_gives_the_logits_of_the_whole_text(module, shape, lengths, steps,
                                                                   scaled):
    """Rows of different lengths side by side, each with the logits it has alone and uncached."""
    model = build(module, **shape, rope_scaling=module.RopeScaling(**LLAMA3) if scaled else None)
    for layer in [*model.model.layers, model.model]:  # weights of norms that are not all one
        for norm in layer.children():
            if isinstance(norm, module.RMSNorm):
                torch.nn.init.uniform_(norm.weight, 0.5, 2)
    longest = max(lengths)
    ids = random_ids(model.config, len(lengths), longest + steps)
    starts = None if len(set(lengths)) == 1 else longest - torch.tensor(lengths)
    cache = module.KVCache(model.config, len(lengths), longest + steps, starts=starts)
    with torch.no_grad():
        model(ids[:, :longest], cache=cache)
        found = torch.cat([model(ids[:, at:at + 1], cache=cache)
                           for at in range(longest, longest + steps)], dim=1)
        for row, length in enumerate(lengths):
            expected = model(ids[row:row + 1, longest - length:])[0, length:]
            assert relative_difference(found[row], expected) <= 1e-5


def test_a_cache_of_bf16_serves_a_model_of_bf16(module):
    model = build(module, initializer_range=0.05).bfloat16()
    ids = random_ids(model.config, 1, 20)
    cache = module.KVCache(model.config, 1, 20, dtype=torch.bfloat16)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split([9, 1, 1, 9], dim=1)]
        assert relative_difference(torch.cat(pieces, dim=1).float(), model(ids).float()) < 1e-2


def saved_bytes(model, ids):
    """Return the bytes that a forward pass in training leaves alive, weights left out.

    Saved tensors are caught by autograd's hooks. Those that selective checkpointing keeps do not
    pass there, but they are Python objects.
    """
    def tensors():
        return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    old, saved = {t.untyped_storage().data_ptr() for t in tensors()}, []

    def pack(tensor):
        saved.append(tensor)
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model.hidden(ids)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in saved + tensors() if t is not logits}
    return sum(size for address, size in storages.items() if address not in old)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 9}])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_gives_the_same_gradients_for_fewer_saved_bytes(
        module, changes, precision):
    # Wide enough that autograd's own small change does not count.
    model = build(module, num_hidden_layers=4, intermediate_size=96, initializer_range=0.05,
                  **changes).train()
    ids = random_ids(model.config, 4, 41)
    gradients, kept = [], []
    for mode in ("none", "selective", "full"):
        model.activation_checkpointing = mode
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            value = module.loss(model, ids[:, :-1], ids[:, 1:])
            gradients.append(torch.autograd.grad(value, list(model.parameters())))
            kept.append(saved_bytes(model, ids[:, :-1]))
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other))
    assert kept[2] < 0.6 * kept[1] < 0.6 * 0.7 * kept[0]


def test_an_unknown_way_of_checkpointing_is_refused(module):
    model = build(module).train()
    model.activation_checkpointing = "some"
    with pytest.raises(ValueError, match="'some': choose none, selective, full"):
        model(torch.tensor([[1]]))


@pytest.mark.contract
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 9}, {"tie_word_embeddings": False}])
def test_low_precision_is_near_fp32_and_keeps_fp32_weights(module, precision, changes):
    model = build(module, initializer_range=0.05, **changes).train()
    ids = random_ids(model.config, 2, 33)
    documents = torch.arange(32).div(10, rounding_mode="floor").expand(2, 32)
    exact = module.loss(model, ids[:, :-1], ids[:, 1:], documents)
    expected = torch.autograd.grad(exact, list(model.parameters()))
    for micro_batch in range(2):  # gradients are added up in fp32
        with torch.autocast("cpu", precision):
            rough = module.loss(model, ids[:, :-1], ids[:, 1:], documents)
        rough.backward()
    assert rough.dtype == torch.float32 and abs(rough.item() / exact.item() - 1) < 1e-3
    for parameter, gradient in zip(model.parameters(), expected):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert relative_difference(parameter.grad / 2, gradient) < 3e-2


def test_small_gradients_survive_fp16_when_the_loss_is_scaled(module):
    """Of 4096 tokens each counts 1/4096: were the mean taken before the products, and not after,
    most of the vocabulary's gradients would fall below what fp16 can hold."""
    torch.manual_seed(0)
    rows = 4096
    model = build(module, vocab_size=512, initializer_range=0.02, num_hidden_layers=1)
    ids = torch.randint(512, (rows // 32, 33))
    exact = module.loss(model, ids[:, :-1], ids[:, 1:])
    expected = torch.autograd.grad(exact, list(model.parameters()))
    with torch.autocast("cpu", torch.float16):
        scaled = module.loss(model, ids[:, :-1], ids[:, 1:]) * 65536
    found = torch.autograd.grad(scaled, list(model.parameters()))
    for one, other in zip(found, expected):
        assert relative_difference(one / 65536, other) < 2e-2


def test_an_overflow_in_fp16_reaches_the_gradients(module):
    """A loss scaled too far must give inf or nan, which a loss scaler looks for, not a wrong
    finite number."""
    model, ids = build(module), random_ids(module.ModelConfig(**SMALL), 2, 33)
    with torch.autocast("cpu", torch.float16):
        scaled = module.loss(model, ids[:, :-1], ids[:, 1:]) * 2.0 ** 40
    scaled.backward()
    assert not all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("preset, billions", [("deepseek-llm-7b", 6.910),
                                              ("deepseek-llm-67b", 67.425)])
def test_published_shapes_have_the_published_size(module, preset, billions):
    with torch.device("meta"):
        model = module.Transformer(module.PRESETS[preset])
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions


@pytest.mark.parametrize("changes, message", [
    ({"hidden_size": 30}, "hidden_size 30"), ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ({"head_dim": 7}, "head_dim 7 is odd"), ({"vocab_size": 0}, "vocab_size is 0"),
    ({"sliding_window": 0}, "sliding_window is 0"), ({"head_dim": -2}, "head_dim is -2"),
    ({"rope_theta": float("nan")}, "rope_theta is nan"), ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"initializer_range": float("inf")}, "initializer_range is inf"),
    ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor is '8'"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "low_freq_factor is 0"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be above")])
def test_shapes_that_do_not_fit_are_refused(module, changes, message):
    with pytest.raises(ValueError, match=message):
        if "rope_scaling" in changes:
            changes = {"rope_scaling": module.RopeScaling(**changes["rope_scaling"])}
        module.ModelConfig(**{**SMALL, **changes})


@pytest.mark.contract
def test_ids_out_of_range_and_long_texts_are_refused(module):
    model = build(module)
    for wrong in (97, -1):
        with pytest.raises(ValueError, match=f"id {wrong} is outside the vocabulary"):
            model(torch.tensor([[5, wrong]]))
    for wrong in (torch.tensor([5, 6]), torch.tensor(5)):
        with pytest.raises(ValueError, match=r"not \(B, T\): ids\[None\] is a row"):
            model(wrong)
    with pytest.raises(ValueError, match="49 positions exceed max_position_embeddings 48 by 1"):
        model(random_ids(model.config, 1, 49))
    cache = module.KVCache(model.config, 1, 48)
    model(random_ids(model.config, 1, 40), cache=cache)
    with pytest.raises(ValueError, match="by 2"):
        model(random_ids(model.config, 1, 10), cache=cache)
