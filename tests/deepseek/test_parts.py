"""What holds of every part: what a model with it may see, its gradients, its cache, its faster equal,
its weights and its settings, against transformers."""

import copy
import dataclasses
import json

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from deepseek_parts import PARTS, build_with
from nanoseek import cost
from nanoseek.checkpoint import load_model, save_model
from nanoseek.deepseek.hugging_face import countable
from nanoseek.deepseek.latent import Latent
from nanoseek.deepseek.presets import PRESETS
from nanoseek.fast import speed_up
from nanoseek.generate import generate, generate_many
from nanoseek.model import KVCache, RMSNorm, Transformer, loss
from nanoseek.scale.hugging_face import from_hugging_face, to_hugging_face

transformers.logging.set_verbosity_error()
IDS = torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(0))


def close(a, b):
    return ((a - b).norm() / b.norm()).item() < 1e-5


# --- transformers -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [name for name, parts in PARTS.items() if parts[0]])
def test_logits_are_those_of_transformers_both_ways(name, tmp_path):
    ours = build_with(*PARTS[name])
    save_model(ours, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == f"Deepseek{name[:2].upper().replace('LA', 'V3')}ForCausalLM"
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        logits = theirs(IDS).logits
        assert close(ours(IDS), logits)
        for folder in ("ours", "theirs"):
            assert close(load_model(tmp_path / folder)(IDS), logits), folder


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_saved_model_opens_with_its_parts(parts, tmp_path):
    ours = build_with(*parts, head_dim=parts[0].qk_rope_head_dim if parts[0] else 8)
    save_model(ours, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == ours.config
    assert torch.allclose(again(IDS), ours(IDS), atol=1e-6)


def test_what_cannot_be_represented_is_refused():
    whole = to_hugging_face(build_with(*PARTS["v3 groups"]).config)
    assert from_hugging_face(whole).attention == PARTS["v3 groups"][0]
    for changes, message in [
            ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
            ({"rope_scaling": {"type": "yarn", "factor": 40}}, "yarn"),
            ({"moe_layer_freq": 2}, "moe_layer_freq"), ({"kv_lora_rank": 0}, "kv_lora_rank is 0"),
            ({"qk_rope_head_dim": 3}, "odd"), ({"n_group": 3}, "n_group 3"),
            ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 exceeds the 4"),
            ({"n_routed_experts": "8"}, "n_routed_experts is '8'"), ({"topk_group": 5}, "topk_group"),
            ({"attention_bias": True}, "attention_bias"), ({"hidden_act": "gelu"}, "hidden_act"),
            ({"rope_interleave": "false"}, "rope_interleave"),
            ({"num_hidden_layers": "3"}, "num_hidden_layers"),
            ({"num_hidden_layers": None}, "num_hidden_layers"),
            ({"model_type": "deepseek_v32", "mlp_layer_types": 5}, "mlp_layer_types"),
            ({"model_type": "deepseek_v32", "mlp_layer_types": ["foo"] * 3}, "mlp_layer_types"),
            ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "topk_method")]:
        with pytest.raises(ValueError, match=message):
            from_hugging_face(whole | changes)
        if "layers" in message or "mlp" in message:
            with pytest.raises(ValueError, match=message):
                countable(whole | changes)
    assert countable({"attention": {"a": 1}, "prediction": 2})["attention"] is None
    with pytest.raises(ValueError, match="rope_interleave"):
        to_hugging_face(build_with(Latent(12, 10, 6, 8, 4, False), PARTS["v2"][1]).config)


def test_weights_of_another_kind_are_refused(tmp_path):
    save_model(build_with(*PARTS["v3"]), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kv_lora_rank": 17}))
    (tmp_path / "model" / "checksums.json").unlink()
    with pytest.raises(ValueError, match="do not fit config.json.*kv_"):
        load_model(tmp_path / "model")


# --- what a token sees --------------------------------------------------------------------------

def test_the_future_and_other_documents_change_nothing(model):
    changed = IDS.clone()
    changed[:, 25:] = (changed[:, 25:] + 7) % 61
    with torch.no_grad():
        before = model(IDS)
        assert torch.allclose(model(changed)[:, :25], before[:, :25], atol=1e-5)
        assert not torch.allclose(model(changed)[:, 25:], before[:, 25:], atol=1e-2)
        documents = (torch.arange(40) >= 18).long().expand(3, -1)
        packed = model(IDS, documents)
        assert torch.allclose(packed[:, :18], before[:, :18], atol=1e-5)
        assert torch.allclose(packed[:, 18:], model(IDS[:, 18:]), atol=1e-4)


@pytest.mark.parametrize("fast", (False, True))
def test_cached_is_uncached(model, fast):
    speed_up(model) if fast else None
    cache = KVCache(model.config, 3, 40)
    with torch.no_grad():
        parts = [model(IDS[:, :9], cache=cache), model(IDS[:, 9:12], cache=cache),
                 *(model(IDS[:, n:n + 1], cache=cache) for n in range(12, 40))]
        assert torch.allclose(torch.cat(parts, dim=1), model(IDS), atol=1e-4)


def test_prompts_of_different_lengths_go_on_as_each_alone(model):
    prompts = [[5], [7, 8, 9, 1, 2], [3] * 9]
    together = generate_many(model, prompts, 12, temperature=0)
    assert together == [generate(model, prompt, 12, temperature=0) for prompt in prompts]


def test_the_faster_model_is_equal(model):
    documents = (torch.arange(40) // 15).expand(3, -1)
    fast = speed_up(copy.deepcopy(model))
    for ids in (None, documents):
        values = []
        for each in (model, fast):
            each.zero_grad()
            value = loss(each, IDS, IDS.roll(-1, 1), ids)
            value.backward()
            values.append([value.detach(), *(p.grad for p in each.parameters())])
        for a, b in zip(*values):
            assert torch.allclose(a, b, atol=1e-5)


def test_gradients_are_those_of_finite_differences(model):
    for module in model.double().modules():  # the chapter's norm computes in fp32
        if isinstance(module, RMSNorm):
            module.__class__ = torch.nn.RMSNorm
    ids = IDS[:1, :6]

    def value():
        return torch.nn.functional.cross_entropy(model(ids)[0], ids[0])
    value().backward()
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if p.requires_grad:
            direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    p.add_(direction, alpha=step)
                    values.append(value())
                    p.sub_(direction, alpha=step)
            slope = (values[0] - values[1]).item() / 2e-6
            found = (p.grad * direction).sum().item()
            assert found == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("mode", ("selective", "full"))
def test_gradients_are_the_same_with_less_memory(model, mode):
    found = []
    for model.activation_checkpointing in ("none", mode):
        model.train().zero_grad()
        loss(model, IDS, IDS.roll(-1, 1)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))


# --- the count ----------------------------------------------------------------------------------

def test_counts_are_those_of_the_model(model, monkeypatch):
    count, experts = cost.parameters(model.config), model.config.feed_forward
    assert count["total"] == sum(p.numel() for p in model.parameters())
    for part, word in (("attention", "self_attn"), ("mlp", ".mlp."), ("norms", "norm")):
        assert count[part] == sum(p.numel() for name, p in model.named_parameters()
                                  if word in name and (word == "norm") == ("norm" in name)), part
    monkeypatch.setattr(torch.nn.functional, "pad", lambda x, widths: x)  # zeros do not count
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
            FlopCounterMode(display=False) as counter:
        loss(model.train(), IDS, IDS).backward()
    each = cost.flops_per_token(model.config, 40)
    # At 40 tokens a row some experts may have no visitor, which changes no sum.
    assert counter.get_total_flops() / IDS.numel() == pytest.approx(each["total"], rel=0.01)
    cache = KVCache(model.config, 2, 40)
    assert cost.memory(model.config, 2, 40, "full")["kv_cache"] == \
        cache.keys.nbytes + cache.values.nbytes
    assert (count["idle"] > 0) == (experts is not None)


@pytest.mark.parametrize("name, total, active", [
    ("deepseek-v2", 236e9, 21e9), ("deepseek-v3", 671e9, 37e9), ("deepseek-v2-lite", 15.7e9, 2.4e9)])
def test_published_sizes(name, total, active):
    """The totals and active parameters of the reports (V2: 2405.04434, V3: 2412.19437)."""
    count = cost.parameters(PRESETS[name])
    assert count["total"] == pytest.approx(total, rel=0.01)
    # Without the embedding, of which a token reads one row: 20.85, 36.63 and 2.45 billion.
    found = count["total"] - count["idle"] - count["embedding"]
    assert found == pytest.approx(active, rel=0.022)
    # Layers with experts are alike, and one of them is built: the last of this model.
    preset = PRESETS[name]
    built = preset.feed_forward.first_k_dense_replace + 1
    with torch.device("meta"):
        model = Transformer(dataclasses.replace(preset, num_hidden_layers=built))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model, model.model.layers[-1])]
    assert count["total"] == sizes[0] + (preset.num_hidden_layers - built) * sizes[1]


def test_published_cache():
    """V3 keeps 70 kB of a token in bf16 ("Insights into DeepSeek-V3", 2505.09343, table 1)."""
    assert cost.memory(PRESETS["deepseek-v3"], 1, 1, "full", "bf16")["kv_cache"] == 70_272


def test_a_published_config_is_counted_though_it_cannot_be_opened():
    settings = {**to_hugging_face(PRESETS["deepseek-v3"]), "quantization_config": {"a": 1},
                "rope_scaling": {"type": "yarn", "factor": 40}}
    assert cost.parameters(countable(settings)) == cost.parameters(PRESETS["deepseek-v3"])
    with pytest.raises(ValueError, match="quantization_config|yarn"):
        from_hugging_face(settings)
    with pytest.raises(ValueError, match="mixture of experts"):
        cost.parameters(settings)
