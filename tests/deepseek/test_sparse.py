"""Sparse attention: against transformers, against latent attention, its choice, its two losses."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st

from deepseek_parts import build_with
from nanoseek import cost
from nanoseek.checkpoint import load_model, save_model
from nanoseek.deepseek.experts import Experts, after_step
from nanoseek.deepseek.latent import Latent
from nanoseek.deepseek.presets import PRESETS
from nanoseek.deepseek.sparse import Indexer, Sparse, SparseAttention, best, set_stage
from nanoseek.model import KVCache, ModelConfig, RMSNorm, Transformer, loss
from nanoseek.scale.hugging_face import from_hugging_face, to_hugging_face
# What holds of every part holds of this one: collected here with the models below.
from test_parts import (  # noqa: F401
    IDS, close, test_cached_is_uncached, test_gradients_are_the_same_with_less_memory,
    test_prompts_of_different_lengths_go_on_as_each_alone, test_the_faster_model_is_equal,
    test_the_future_and_other_documents_change_nothing)

transformers.logging.set_verbosity_error()
# Many index heads: with few, many scores are exactly 0, and which of equal ones wins is our choice.
SHAPES = {
    "alone": (Sparse(16, 12, 8, 4, 8, True, 16, 8, 6), None),
    "experts": (Sparse(16, 12, 8, 4, 12, True, 16, 12, 9), Experts(16, 8, 2)),
    "all rotated, one key": (Sparse(12, 10, 6, 8, 4, True, 12, 8, 1), None),
    "groups, dense layer": (Sparse(20, 24, 8, 6, 8, True, 24, 7, 25),
                            Experts(16, 8, 2, 2, 4, 2, first_k_dense_replace=1,
                                    routed_scaling_factor=2.5))}
PART = SHAPES["alone"][0]


@pytest.fixture
def model():
    return build_with(*SHAPES["experts"]).train()  # its indexer has a gradient only in training


def indexers(model):
    return {name: p for name, p in model.named_parameters() if ".indexer." in name}


def all_keys(model):
    """Return the model with latent attention in place of sparse, with the same weights."""
    part = model.config.attention
    latent = Latent(**{name: value for name, value in vars(part).items()
                       if not name.startswith("index_")})
    other = Transformer(dataclasses.replace(model.config, attention=latent)).eval()
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                           if ".indexer." not in name})
    return other


# --- what it computes ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers_both_ways(name, tmp_path):
    ours = build_with(*SHAPES[name], head_dim=SHAPES[name][0].qk_rope_head_dim)
    for p in indexers(ours).values():  # LayerNorm's weights and biases begin as 1 and 0
        p.data.add_(torch.randn(p.shape), alpha=0.3)
    save_model(ours, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == "DeepseekV32ForCausalLM"
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        logits = theirs(IDS).logits
        assert not close(all_keys(ours)(IDS), logits)  # the choice matters
        for folder in ("ours", "theirs"):
            again = load_model(tmp_path / folder)
            assert close(again(IDS), logits), folder
            assert again.config.attention == ours.config.attention
            assert again.config.feed_forward == ours.config.feed_forward
    assert load_model(tmp_path / "ours").config == ours.config


def test_what_cannot_be_represented_is_refused():
    whole = to_hugging_face(build_with(*SHAPES["experts"]).config)
    for changes, message in [
            ({"index_topk": 0}, "index_topk is 0"), ({"rope_interleave": False}, "rope_interleave"),
            ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
            ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config")]:
        with pytest.raises(ValueError, match=message):
            from_hugging_face(whole | changes)
    v2 = Experts(16, 8, 2, scoring_func="softmax", norm_topk_prob=False)
    with pytest.raises(ValueError, match="scoring_func"):
        to_hugging_face(build_with(PART, v2).config)


@pytest.mark.parametrize("topk, stage", [(40, "sparse"), (100, "sparse"), (6, "dense")])
def test_where_all_keys_are_read_it_is_latent_attention(topk, stage):
    ours = build_with(dataclasses.replace(PART, index_topk=topk), None)
    set_stage(ours, stage)
    with torch.no_grad():
        for documents in (None, (torch.arange(40) // 15).expand(3, -1)):
            assert torch.equal(ours(IDS, documents), all_keys(ours)(IDS, documents))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_best_are_those_of_a_stable_sort(data):
    S = data.draw(st.integers(1, 12))
    k, hidden = data.draw(st.integers(1, S)), data.draw(st.integers(0, 3))
    row = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.0]), min_size=S, max_size=S))
    order = sorted(range(S), key=lambda s: (-row[s], -s))[:k]
    found = best(torch.tensor([row + [-torch.inf] * hidden]), k)[0]
    assert found.nonzero()[:, 0].tolist() == sorted(order)


def test_each_query_reads_as_many_keys_as_it_may():
    layer = build_with(PART, None).model.layers[0].self_attn
    masks = []
    layer.attend = lambda *inputs: masks.append(inputs[-1]) or torch.zeros(3, 40, 32)
    x, rotary = torch.randn(3, 40, 32), (torch.ones(40, 1, 4), torch.zeros(40, 1, 4))
    for fast in (None, torch.zeros(40, 40).masked_fill(torch.ones(40, 40).triu(1) > 0, -torch.inf)):
        layer(x, rotary, fast)
    assert torch.equal(*masks)
    assert torch.equal(masks[0].sum(-1), torch.arange(1, 41).clamp(max=6).expand(3, 1, -1))
    assert not (masks[0] & torch.ones(40, 40).triu(1).bool()).any()


def test_one_new_token_fetches_only_what_it_reads():
    model, sizes = build_with(PART, None), []
    for layer in model.model.layers:
        layer.self_attn.absorbed = lambda *inputs, real=layer.self_attn.absorbed: (
            sizes.append(inputs[2].shape[2]), real(*inputs))[1]
    cache = KVCache(model.config, 3, 40)
    with torch.no_grad():
        model(IDS[:, :30], cache=cache)
        model(IDS[:, 30:31], cache=cache)
    assert sizes == [6, 6, 6]


# --- how it learns ------------------------------------------------------------------------------

def naive_divergence(layer, x, documents, chosen):
    """KL of one layer by the report's words, one query at a time, over `chosen` keys or all."""
    part, index = layer.part, layer.indexer
    x, total = x.detach().double().numpy(), 0.0
    weights = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}

    def norm(v, weight):
        return v / np.sqrt((v ** 2).mean() + 1e-6) * weight

    def turn(v, t, neighbours):  # rotate pairs of the first P numbers by position t
        P, v = part.qk_rope_head_dim, v.copy()
        for i in range(P // 2):
            a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + P // 2)
            angle = t * 10000.0 ** (-2 * i / P)
            v[a], v[b] = (v[a] * np.cos(angle) - v[b] * np.sin(angle),
                          v[b] * np.cos(angle) + v[a] * np.sin(angle))
        return v
    R, N, V, I = part.kv_lora_rank, part.qk_nope_head_dim, part.v_head_dim, part.index_head_dim
    rows, T, _ = x.shape
    for b in range(rows):
        keys, index_keys = [], []
        for t, h in enumerate(x[b]):
            down = weights["kv_a_proj_with_mqa.weight"] @ h
            up = (weights["kv_b_proj.weight"] @ norm(down[:R], weights["kv_a_layernorm.weight"])
                  ).reshape(layer.heads, N + V)
            rotated = turn(down[R:], t, True)
            keys.append([np.concatenate((head[:N], rotated)) for head in up])
            key = weights["indexer.wk.weight"] @ h
            key = (key - key.mean()) / np.sqrt(key.var() + 1e-6)
            index_keys.append(turn(key * weights["indexer.k_norm.weight"]
                                   + weights["indexer.k_norm.bias"], t, False))
        for t, h in enumerate(x[b]):
            seen = [s for s in range(t + 1) if documents[b][s] == documents[b][t]]
            low = norm(weights["q_a_proj.weight"] @ h, weights["q_a_layernorm.weight"])
            queries = (weights["q_b_proj.weight"] @ low).reshape(layer.heads, -1)
            index = [turn(q, t, False) for q in
                     (weights["indexer.wq_b.weight"] @ low).reshape(-1, I)]
            w = weights["indexer.weights_proj.weight"] @ h
            scores = {s: sum(w[j] * max(0, q @ index_keys[s]) for j, q in enumerate(index))
                      / np.sqrt(len(index) * I) for s in seen}
            if chosen:
                seen = sorted(seen, key=lambda s: -scores[s])[:part.index_topk]
            p = np.zeros(len(seen))
            for head, q in enumerate(queries):
                q = np.concatenate((q[:N], turn(q[N:], t, True)))
                e = np.exp([q @ keys[s][head] / np.sqrt(len(q)) for s in seen])
                p += e / e.sum()
            p /= p.sum()
            e = np.exp([scores[s] for s in seen])
            total += (p * np.log(p / (e / e.sum()))).sum()
    return total / (rows * T)


@pytest.mark.parametrize("stage", ("dense", "sparse"))
def test_the_indexers_loss_is_that_of_the_report(stage):
    model = build_with(PART, None).train()
    set_stage(model, stage)
    ids, documents = IDS[:2, :14], torch.tensor([[0] * 14, [0] * 4 + [1] * 10])
    inputs = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    value = loss(model, ids, ids, documents)
    for layer, x in zip(model.model.layers, inputs):
        naive = naive_divergence(layer.self_attn, x, documents.tolist(), stage == "sparse")
        assert layer.self_attn.indexer.divergence.item() == pytest.approx(naive, rel=1e-4)
    # It adds its gradient to the model's loss, not its value, and nothing where nobody learns.
    assert value.item() == loss(model.eval(), ids, ids, documents).item()
    with torch.no_grad():
        loss(model.train(), ids, ids)
    assert not any(layer.self_attn.indexer.auxiliary_loss for layer in model.model.layers)


def double(model):
    for module in model.double().modules():  # the chapter's norm computes in fp32
        if isinstance(module, RMSNorm):
            module.__class__ = torch.nn.RMSNorm
    return model


@pytest.mark.parametrize("stage", ("dense", "sparse"))
def test_each_loss_moves_its_own_weights_as_finite_differences_say(stage):
    """A step so small that no choice changes, and no ReLU: the model's loss gives the gradient of all
    but the indexers, the indexers' losses that of the indexers, and neither reaches further."""
    model = double(build_with(PART, None, num_hidden_layers=2).train())
    set_stage(model, stage)
    ids = IDS[:1, :12]
    logits = model(ids)
    own = torch.nn.functional.cross_entropy(logits[0], ids[0])
    their = sum(layer.self_attn.indexer.auxiliary_loss for layer in model.model.layers)
    names, parameters = zip(*model.named_parameters())
    of_own = torch.autograd.grad(own, parameters, retain_graph=True, allow_unused=True)
    of_their = torch.autograd.grad(their, parameters, allow_unused=True)

    def values():
        logits = model(ids)
        return (torch.nn.functional.cross_entropy(logits[0], ids[0]).item(),
                sum(layer.self_attn.indexer.divergence.item() for layer in model.model.layers))
    generator = torch.Generator().manual_seed(1)
    for name, p, first, second in zip(names, parameters, of_own, of_their):
        indexing = ".indexer." in name
        assert (first is None, second is None) == (indexing, not indexing), name
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        found = []
        for step in (1e-7, -1e-7):
            p.data.add_(direction, alpha=step)
            found.append(values()[indexing])
            p.data.sub_(direction, alpha=step)
        slope = (found[0] - found[1]) / 2e-7
        gradient = ((second if indexing else first) * direction).sum().item()
        assert gradient == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def recall(model, ids):
    """Return the share of the index_topk most attended keys that the indexers find."""
    found, k = [], model.config.attention.index_topk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Indexer, "learn", lambda self, *inputs: found.append(inputs))
        model.hidden(ids)
    hits, wanted = 0, 0
    for scores, target, seen in found:
        sets = [best(values.masked_fill(~seen, -torch.inf), k) & seen for values in (scores, target)]
        hits += (sets[0] & sets[1])[..., 2 * k:, :].sum()  # queries that have a choice
        wanted += sets[1][..., 2 * k:, :].sum()
    return (hits / wanted).item()


def test_the_indexer_learns_where_attention_looks():
    model = build_with(dataclasses.replace(PART, index_n_heads=8), None).train()
    set_stage(model, "dense")
    optimizer = torch.optim.Adam(indexers(model).values(), 0.03)
    generator = torch.Generator().manual_seed(2)
    unseen = torch.randint(61, (4, 40), generator=generator)
    before, divergences = recall(model, unseen), []
    for _ in range(45):
        ids = torch.randint(61, (4, 40), generator=generator)
        loss(model, ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
        divergences.append(sum(layer.self_attn.indexer.divergence.item()
                               for layer in model.model.layers))
    assert divergences[-1] < 0.6 * divergences[0]
    assert before < 0.3 and recall(model, unseen) > 0.45


# --- the count ----------------------------------------------------------------------------------

def test_counts_are_those_of_the_model():
    for part, experts in SHAPES.values():
        model = build_with(part, experts)
        count = cost.parameters(model.config)
        assert count["total"] == sum(p.numel() for p in model.parameters())
        norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
        assert count["norms"] == norms
        cache = KVCache(model.config, 2, 40)
        assert cost.memory(model.config, 2, 40, "full")["kv_cache"] == \
            cache.keys.nbytes + cache.values.nbytes


def test_flops_are_those_of_the_products_it_needs():
    """V3.2's own shape at 128K: per head 192 to compare and 128 to add up, for 2,048 keys; per index
    head 128 to compare and 1 to add up, for all. Training is three times the forward pass."""
    config = dataclasses.replace(PRESETS["deepseek-v3"], attention=Sparse(
        512, 1536, 128, 64, 128, True, 64, 128, 2048))
    wide, index = 2 * 128 * (192 + 128), 2 * 64 * (128 + 1)
    for context in (1000, 2048, 131_072):
        expected = 3 * 61 * (wide * min(context, 2048) + index * context)
        assert cost.flops_per_token(config, context)["attention"] == pytest.approx(expected)
    more = cost.parameters(config)["total"] - cost.parameters(PRESETS["deepseek-v3"])["total"]
    assert more == 61 * (1536 * 64 * 128 + 7168 * 128 + 7168 * 64 + 2 * 128)


# --- what is refused ----------------------------------------------------------------------------

@pytest.mark.parametrize("changes, message", [
    ({"index_topk": 0}, "index_topk is 0"), ({"index_n_heads": 1.5}, "index_n_heads is 1.5"),
    ({"index_head_dim": 8}, "index_head_dim 8 is below qk_rope_head_dim 16"),
    ({"q_lora_rank": None}, "q_lora_rank"), ({"rope_interleave": False}, "rope_interleave"),
    ({"qk_rope_head_dim": 5}, "is odd"), ({"index_topk": True}, "index_topk is True")])
def test_shapes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Sparse(**changes)


def test_a_window_and_an_unknown_stage_are_refused():
    with pytest.raises(ValueError, match="sliding_window"):
        Transformer(ModelConfig(sliding_window=8, attention=Sparse()))
    with pytest.raises(ValueError, match="unknown stage 'warm': choose dense or sparse"):
        set_stage(build_with(PART, None), "warm")


def test_after_a_step_a_model_can_be_copied(model):
    """A loss kept from the last batch would hold its graph, which cannot be copied."""
    loss(model, IDS, IDS).backward()
    after_step(model)
    assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(model).parameters(),
                                                 model.parameters()))
