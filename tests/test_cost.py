"""cost.py against counted tensors, torch's FLOP counter, saved tensors, and published figures."""

import dataclasses
import gc
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nanoseek import fast
from nanoseek.model import PRESETS, KVCache, ModelConfig, Transformer, loss
from nanoseek.optim import build_optimizers

MODULE = "nanoseek.cost"
pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True}


@st.composite
def configs(draw):
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, size = kv_heads * groups, draw(st.sampled_from([4, 8, 10]))
    return {"vocab_size": draw(st.integers(5, 300)), "num_hidden_layers": draw(st.integers(1, 3)),
            "hidden_size": heads * size, "intermediate_size": draw(st.integers(1, 120)),
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": draw(st.sampled_from([None, 6])), "max_position_embeddings": 64,
            "tie_word_embeddings": draw(st.booleans())}


def on_meta(config):
    """Build transformers' Llama without memory."""
    from transformers import LlamaConfig, LlamaForCausalLM
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**config))


# --- Parameters ---------------------------------------------------------------------------------

@pytest.mark.contract
@settings(max_examples=25, deadline=None)
@given(config=configs())
def test_parameters_equal_the_tensors_of_transformers(module, config):
    model = on_meta(config)
    named = {name: p.numel() for name, p in model.named_parameters()}  # tied ones once
    count = module.parameters(config)
    assert count["total"] == sum(named.values())
    assert count["attention"] == sum(n for name, n in named.items() if "self_attn" in name)
    assert count["mlp"] == sum(n for name, n in named.items() if ".mlp." in name)
    assert count["norms"] == sum(n for name, n in named.items() if "norm" in name)
    assert count["head"] == named.get("lm_head.weight", 0)
    assert count["matmul"] == sum(layer.weight.numel() for layer in model.modules()
                                  if isinstance(layer, torch.nn.Linear))


@pytest.mark.contract
@pytest.mark.parametrize("name, billions",
                         [("deepseek-llm-7b", 6.910), ("deepseek-llm-67b", 67.425)])
def test_published_models(module, name, billions):
    config = PRESETS[name]
    total = module.parameters(config)["total"]
    assert round(total / 1e9, 3) == billions
    assert total == sum(p.numel() for p in on_meta(dataclasses.asdict(config)).parameters())


def test_shapes_of_the_bills_have_the_published_sizes(module):
    """The sizes on the model cards and in the papers, in billions of parameters. GPT-2, GPT-3 and
    BLOOM have biases and position embeddings as well, which are no matrix products."""
    published = {"Llama 2 7B": 6.738, "Llama 2 13B": 13.016, "Llama 2 70B": 68.977,
                 "TinyLlama 1.1B": 1.100, "MPT-7B": 6.649, "GPT-2 124M": 0.1244,
                 "BLOOM 176B": 176.247, "Llama 3 8B": 8.030, "Llama 3 70B": 70.554,
                 "Llama 3.1 405B": 405.853, "GPT-2 1558M": 1.558, "DeepSeek 67B": 67.425,
                 "GPT-3 175B": 175}
    dense = {bill["model"]: bill for bill in module.tables()["bills"]
             if "n_routed_experts" not in bill["config"]}
    assert dense.keys() == published.keys()
    for name, bill in dense.items():
        billions = module.parameters(bill["config"])["total"] / 1e9
        assert billions == pytest.approx(published[name], rel=0.01)


# --- FLOPs --------------------------------------------------------------------------------------

def counted_flops(model, ids, backward=True):
    """Count with torch; the fused attention of the CPU would be counted as nothing, and the
    model's own for short rows computes its scores twice."""
    with pytest.MonkeyPatch.context() as patch, \
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
            FlopCounterMode(display=False) as counter:
        patch.setattr("nanoseek.model.SHORT", 0, raising=False)
        if backward:
            loss(model, ids, ids).backward()
        else:
            model(ids)
    return counter.get_total_flops()


@pytest.mark.contract
@settings(max_examples=15, deadline=None)
@given(config=configs(), batch=st.integers(1, 3), length=st.integers(2, 64))
def test_flops_equal_torchs_counter(module, config, batch, length):
    model = Transformer(ModelConfig(**config)).train()
    ids = torch.randint(config["vocab_size"], (batch, length))
    each = {key: value * batch * length
            for key, value in module.flops_per_token(config, length).items()}
    assert counted_flops(model, ids) == pytest.approx(each["total"], rel=0.01)
    assert counted_flops(model, ids, backward=False) == pytest.approx(each["forward"], rel=0.01)


def test_flops_of_a_checkpointed_model(module):
    model, ids = Transformer(ModelConfig(**TINY)).train(), torch.randint(160, (2, 32))
    model.activation_checkpointing = "full"
    each = module.flops_per_token(TINY, 32)
    # The counter sees a little less: the last product of a layer need not be done again.
    assert counted_flops(model, ids) == pytest.approx(
        64 * (each["total"] + each["recomputation"]), rel=0.05)
    assert counted_flops(model, ids) > 64 * each["total"] * 1.1


@pytest.mark.contract
def test_flops_by_hand(module):
    config = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 3,
              "num_attention_heads": 2, "num_key_value_heads": 1}
    # A layer: q, o 8·8, k, v 8·4, MLP 3·8·20: 672. Attention 12·3·8·5 at 5 tokens.
    assert module.flops_per_token(config, 5) == {
        "matrices": 6 * 3 * 672, "attention": 1440, "head": 480, "total": 14016,
        "forward": 4672, "backward": 9344, "recomputation": (12096 + 1440) / 3}


def test_deepseeks_own_formula_overstates_the_67b(module):
    config = PRESETS["deepseek-llm-67b"]
    formula = 72 * 95 * 8192 ** 2 + 12 * 95 * 8192 * 4096  # DeepSeek LLM §3: taken as multi-head
    assert formula == pytest.approx(4.97e11, rel=0.002)
    assert module.flops_per_token(config, 4096)["total"] == pytest.approx(4.38e11, rel=0.002)


def test_a_mixture_of_an_unknown_kind_is_refused(module):
    config = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2,
              "intermediate_size": 4, "vocab_size": 9, "n_routed_experts": 16}
    with pytest.raises(ValueError, match="mixture of experts"):
        module.parameters(config)
    with pytest.raises(ValueError, match="mixture of experts"):
        module.cost(config, 10)
    dense = {name: value for name, value in config.items() if name != "n_routed_experts"}
    assert module.parameters({**dense, "num_experts": None, "num_local_experts": 1})
    for other in ({"n_experts": 8}, {"moe_num_experts": 4}, {"num_experts": [8]}):
        with pytest.raises(ValueError, match="mixture of experts"):
            module.parameters({**dense, **other})


# --- Memory -------------------------------------------------------------------------------------

def as_trained(config):
    """Build the model with the parts of fast/, as train does: memory is counted for those."""
    model = Transformer(ModelConfig(**config)).train()
    return fast.speed_up(model)


def tensors():
    return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]


def saved_bytes(model, batch, length, precision="fp32", document_ids=None):
    """Return the bytes that the loss leaves alive for its gradient, parameters left out.

    Autograd's hooks see what it saves; what checkpointing keeps are Python objects.
    """
    ids = torch.randint(model.config.vocab_size, (batch, length))
    old, saved = {t.untyped_storage().data_ptr() for t in tensors()}, []

    def pack(tensor):
        saved.append(tensor)  # kept, so that no address is used twice
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), \
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        value = loss(model, ids, ids, document_ids)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in saved + tensors() if t is not value}
    return sum(size for address, size in storages.items() if address not in old)


@pytest.mark.parametrize("changes, batch, length", [
    ({}, 4, 64), ({"num_key_value_heads": 4}, 8, 48), ({"num_key_value_heads": 1}, 3, 64),
    ({"num_hidden_layers": 5, "intermediate_size": 48}, 4, 64),
    ({"hidden_size": 96, "intermediate_size": 256, "vocab_size": 500}, 6, 64),
    ({"sliding_window": 16}, 4, 64)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_activations_equal_what_autograd_saves(module, changes, batch, length, precision,
                                               checkpointing, monkeypatch):
    monkeypatch.setattr("nanoseek.fast.window.WINDOW_BLOCK", 8)
    config = {**TINY, **changes}
    model = as_trained(config)
    model.activation_checkpointing = checkpointing
    parts = module.memory(config, batch, length, checkpointing, precision)
    # Copies of the weights are saved with the activations, but not inside a checkpoint.
    predicted = parts["activations"] + (parts["weight_copies"] if checkpointing == "none" else 0)
    assert saved_bytes(model, batch, length, precision) == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_mask_between_documents_is_saved_too(module, checkpointing):
    model = as_trained(TINY)
    model.activation_checkpointing = checkpointing
    documents = (torch.arange(64) // 20).expand(3, 64)
    bytes_without, bytes_with = (module.memory(TINY, 3, 64, checkpointing,
                                               document_mask=mask)["activations"]
                                 for mask in (False, True))
    more = saved_bytes(model, 3, 64, document_ids=documents) - saved_bytes(model, 3, 64)
    assert more == pytest.approx(bytes_with - bytes_without, rel=0.1)


class ProductBytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Add up the bytes of the results of matrix products."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.total += result.nbytes
        return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_selective_keeps_the_results_of_matrix_products(module, precision):
    model, ids = as_trained(TINY), torch.randint(160, (3, 40))
    with ProductBytes() as products, torch.autocast("cpu", torch.bfloat16,
                                                    enabled=precision == "bf16"):
        model.hidden(ids)
    selective, full = (module.memory(TINY, 3, 40, mode, precision)["activations"]
                       for mode in ("selective", "full"))
    assert selective - full == products.total


@pytest.mark.contract
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_state_equals_the_tensors_of_a_step(module, optimizer, tied):
    config = {**TINY, "tie_word_embeddings": tied}
    model, ids = Transformer(ModelConfig(**config)), torch.randint(160, (2, 16))
    optimizers = build_optimizers(model, optimizer, 1e-3, 0.1)
    loss(model, ids, ids).backward()
    for part in optimizers:
        part.step()
    state = sum(tensor.nbytes for part in optimizers for entry in part.state.values()
                for tensor in entry.values() if tensor.ndim)
    parts = module.memory(config, 2, 16, optimizer=optimizer)
    assert parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert parts["optimizer"] == state
    assert parts["total"] == sum(parts[key] for key in (
        "weights", "gradients", "optimizer", "weight_copies", "activations", "working"))


@pytest.mark.contract
def test_cache_equals_its_tensors_and_is_8_times_smaller_with_gqa(module):
    cache = KVCache(ModelConfig(**TINY), 3, 20)
    assert module.memory(TINY, 3, 20)["kv_cache"] == cache.keys.nbytes + cache.values.nbytes
    # A window counts only where all layers have it.
    window = {**TINY, "sliding_window": 4}
    assert module.memory(window, 3, 20)["kv_cache"] * 5 == module.memory(TINY, 3, 20)["kv_cache"]
    for some in ({"layer_types": ["sliding_attention", "full_attention"]},
                 {"sliding_window_pattern": 6}):
        assert module.memory({**window, **some}, 3, 20)["kv_cache"] == \
            module.memory(TINY, 3, 20)["kv_cache"]
    grouped = dataclasses.asdict(PRESETS["deepseek-llm-67b"])
    full = {**grouped, "num_key_value_heads": 64}
    assert module.memory(full, 1, 4096)["kv_cache"] == \
        8 * module.memory(grouped, 1, 4096)["kv_cache"]


# --- The price tag ------------------------------------------------------------------------------

@pytest.mark.contract
def test_price_tag_by_hand(module):
    tag = module.price_tag(TINY, tokens=1000, seconds=7200, ceiling=5e6, context=32, watts=100,
                           dollars_per_kwh=0.5, dollars_per_hour=3.0, pue=1.5)
    per_token = 6 * (2 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 112) + 160 * 48) + 12 * 2 * 48 * 32
    assert tag["flops"] == 1000 * per_token
    assert tag["flops_per_second"] == pytest.approx(1000 * per_token / 7200)
    assert tag["mfu"] == pytest.approx(1000 * per_token / 7200 / 5e6)
    assert tag["kwh"] == pytest.approx(0.1 * 2 * 1.5)
    assert tag["dollars_electricity"] == pytest.approx(0.15)
    assert tag["dollars_rent"] == pytest.approx(6.0)
    assert tag["assumptions"]["watts"] == {"value": 100, "source": "given"}
    assert json.loads(json.dumps(tag)) == tag


@pytest.mark.contract
def test_price_tag_states_what_it_assumes(module):
    with pytest.raises(TypeError, match="context"):  # the longest row possible would be no bill
        module.price_tag(ModelConfig(**TINY), 1000, 10, 1e9)
    tag = module.price_tag(ModelConfig(**TINY), 1000, 10, 1e9, 64)
    assert tag["context"] == 64 and tag["convention"]
    assert tag["assumptions"].keys() == {"watts", "dollars_per_kwh", "dollars_per_hour", "pue"}
    assert all(entry["value"] > 0 and entry["source"] for entry in tag["assumptions"].values())


def test_ceiling_is_the_best_of_the_timed_products(module, monkeypatch):
    # A clock under which the first product takes 1 s, the next ones 0.5 s, then 4 s.
    ticks = iter([0, 0, 1, 1, 1.5, 1.5, 2, 2, 2, 6, 7])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    assert module.measure_ceiling(seconds=2) == 2 * 2048 ** 3 / 0.5


# --- The bill of rented chips -------------------------------------------------------------------

def test_every_figure_names_its_source_and_unverified_ones_are_left_out(module):
    tables = module.tables()
    rows = [*tables["hardware"].values(), *tables["bills"], *tables["claims"]]
    assert all(row["source"] for row in rows)
    assert tables["hardware"]["RTX 3090"]["watts"] is None  # only an unverified figure is known


def test_a_copy_without_its_tables_says_so(module, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "cost.py"))
    assert module.cost(TINY, tokens=9)["flops"]
    with pytest.raises(FileNotFoundError, match="cost_tables.json"):
        module.cost(TINY, tokens=9, gpu="H100")


def test_energy_of_the_67b(module):
    """601K hours × 0.7 kW × PUE 1.3 ≈ 547 MWh ≈ $44K at $0.08, about 4% of $1.2M."""
    bill = module.cost(PRESETS["deepseek-llm-67b"], tokens=2e12, gpu="H800")
    assert bill["gpu_hours"] == pytest.approx(2 * 300_600)  # the only dense bill on the H800
    assert bill["dollars"] == pytest.approx(1.2e6, rel=0.01)
    assert bill["kwh"] == pytest.approx(547e3, rel=0.01)
    assert bill["dollars_electricity"] == pytest.approx(44e3, rel=0.01)
    assert bill["dollars_electricity"] / bill["dollars"] == pytest.approx(0.04, abs=0.005)


@pytest.mark.contract
def test_cost_follows_what_is_given(module):
    bill = module.cost(TINY, context=64, tokens=1e6, gpu="H20", mfu=0.5, watts=300, pue=2.0,
                       dollars_per_hour=4.0, dollars_per_kwh=0.1)
    hours = bill["flops"] / (148e12 * 0.5) / 3600
    assert bill["gpu_hours"] == pytest.approx(hours)
    assert bill["dollars"] == pytest.approx(4 * hours)
    assert bill["dollars_electricity"] == pytest.approx(hours * 0.3 * 2 * 0.1)
    assert bill["memory"]["full"] == module.memory(TINY, 1, 64, "full", "bf16")


def test_claims_agree_with_the_bills(module):
    record = {row["claim"]: row["record"] for row in module.tables()["claims"]}
    assert len(record) == 11
    bills = {bill["model"]: bill for bill in module.tables()["bills"]}
    llama, deepseek = bills["Llama 2 70B"], bills["DeepSeek 67B"]
    rents = {name: chip["dollars_per_hour"] for name, chip in module.tables()["hardware"].items()}
    times = llama["gpu_hours"] * rents["A100"] / (2 * deepseek["gpu_hours"] * rents["H800"])
    assert f"{times:.1f} times the 67B" in record["It cost under a tenth of the usual"]
    sizes = deepseek["config"]["vocab_size"] / llama["config"]["vocab_size"]
    assert f"{sizes:.1f} times Llama 2's" in record["Its vocabulary is smaller"]


# --- Bad input ----------------------------------------------------------------------------------

@pytest.mark.contract
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads",
                                   "intermediate_size", "vocab_size"])
def test_a_config_without_a_field_names_it(module, field):
    config = {name: value for name, value in TINY.items() if name != field}
    with pytest.raises(ValueError, match=field):
        module.parameters(config)
    for bad in (0, -4, 2.5, "big", True):
        with pytest.raises(ValueError, match=field):
            module.parameters({**TINY, field: bad})


@pytest.mark.parametrize("call, words", [
    (lambda m: m.memory(TINY, 1, 8, checkpointing="some"), "none, selective, full"),
    (lambda m: m.memory(TINY, 1, 8, precision="fp8"), "fp32, bf16, fp16"),
    (lambda m: m.memory(TINY, 0, 8), "batch"),
    (lambda m: m.flops_per_token(TINY, -1), "context"),
    (lambda m: m.price_tag(TINY, 0, 1, 1, 8), "tokens"),
    (lambda m: m.price_tag(TINY, 1, 1, 1, context=0), "context"),
    (lambda m: m.price_tag(TINY, 1, math.nan, 1, 8), "seconds"),
    (lambda m: m.price_tag(TINY, 1, 1, 0, 8), "ceiling"),
    (lambda m: m.price_tag(TINY, 1, 1, 1, 8, watts=-5), "watts"),
    (lambda m: m.price_tag(TINY, 1, 1, 1, 8, volts=5), "unknown assumption 'volts'"),
    (lambda m: m.cost(TINY, gpu="H100"), "tokens"),
    (lambda m: m.cost(TINY, tokens=9, gpu="H100", mfu=7), "mfu is 7: .* at most 1"),
    (lambda m: m.cost(TINY, tokens=9, mfu=0.5, watts=9), "mfu, watts would change nothing"),
    (lambda m: m.cost(TINY, tokens=9, gpu="H100", mfu=0), "mfu is 0"),
    (lambda m: m.cost(TINY, tokens=9, gpu="H100", mfu=math.nan), "mfu is nan")])
def test_bad_input_is_named(module, call, words):
    with pytest.raises(ValueError, match=words):
        call(module)


@pytest.mark.parametrize("call, words", [
    (lambda m: m.cost(TINY, tokens=1e9, gpu="H9000"), "unknown GPU 'H9000': choose A100"),
    (lambda m: m.cost(TINY, tokens=1e9, gpu="H200"), "H200 has no known watts: give it"),
    (lambda m: m.cost(TINY, tokens=1e9, gpu="T4"), "T4 has no known dollars_per_hour"),
    (lambda m: m.cost(TINY, tokens=1e9, gpu="RTX 3090"), "no known watts")])
def test_chips_that_cannot_be_priced(module, call, words):
    with pytest.raises(ValueError, match=words):
        call(module)
