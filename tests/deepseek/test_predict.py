"""Multi-token prediction: against the equations position by position, transformers' module, the plain
loop of greedy decoding; what training, checkpoints and the count make of it."""

import copy
import dataclasses
import json

import pytest
import torch
import transformers
from hypothesis import given, settings as hypothesis_settings, strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from deepseek_parts import PARTS, build_with
from nanoseek import cost, train
from nanoseek.checkpoint import load_model, save_model
from nanoseek.deepseek.experts import Experts
from nanoseek.deepseek.hugging_face import countable
from nanoseek.deepseek.latent import Latent
from nanoseek.deepseek.predict import MultiToken, ahead, generate_ahead
from nanoseek.deepseek.presets import PRESETS
from nanoseek.evaluate import nats
from nanoseek.fast import speed_up
from nanoseek.model import DecoderLayer, loss, rotary_table
from nanoseek.optim import build_optimizers
from nanoseek.scale.hugging_face import from_hugging_face, to_hugging_face
from small_run import final_weights, make_run, quick_ceiling, settings  # noqa: F401 (a fixture)

transformers.logging.set_verbosity_error()
IDS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 2 + [2] + [3] * 12, [0] * 24])
KINDS = {"dense": (None, None), "v3": PARTS["v3"], "v3 groups": PARTS["v3 groups"]}


def predicting(kind="dense", depth=1, **changes):
    return build_with(*KINDS[kind], prediction=MultiToken(depth, 0.3), **changes)


def close(a, b):
    return ((a - b).norm() / b.norm()).item() < 1e-5


# --- training -----------------------------------------------------------------------------------

def one_position(model, depth, ids, at):
    """The scores of module `depth` at one position of a document: the paper's equations, alone."""
    def norm(x, weight):
        return x / (x.pow(2).mean() + model.config.rms_norm_eps).sqrt() * weight
    vectors = model.hidden(ids[None])[0]
    for k in range(1, depth + 1):
        module = model.model.layers[model.config.num_hidden_layers + k - 1]
        joined = [module.eh_proj.weight @ torch.cat((
            norm(model.model.embed_tokens.weight[ids[i + k]], module.enorm.weight),
            norm(vectors[i], module.hnorm.weight))) for i in range(at + 1)]
        seen = torch.ones(at + 1, at + 1, dtype=torch.bool).tril()
        made = DecoderLayer.forward(module, torch.stack(joined)[None], rotary_table(
            model.config, torch.arange(at + 1)), seen)[0]
        vectors = [norm(vector, module.shared_head.norm.weight) for vector in made]
    return model.lm_head.weight @ vectors[at]


@pytest.mark.parametrize("kind, depth, packed", [
    ("dense", 1, True), ("dense", 2, True), ("v3", 1, False), ("v3 groups", 2, True)])
def test_the_loss_is_that_of_the_equations(kind, depth, packed):
    """Documents of a row, also of one or two tokens, are scored as if each stood alone."""
    model = predicting(kind, depth)
    for layer in model.model.layers[3:]:  # weights of norms that are not all one
        for norm in (layer.enorm, layer.hnorm, layer.shared_head.norm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    targets = IDS.roll(-1, 1)
    targets[0, 3], targets[1, 12:15] = -100, -1
    documents = DOCUMENTS if packed else torch.zeros_like(IDS)
    expected = 0.0
    with torch.no_grad():
        for k in range(1, depth + 1):
            each = []
            for row in range(2):
                for document in documents[row].unique():
                    columns = (documents[row] == document).nonzero()[:, 0]
                    for i in range(len(columns) - k):  # where its token i + k is in the row
                        if (target := targets[row, columns[i + k]]) >= 0:
                            scores = one_position(model, k, IDS[row, columns], i)
                            each.append(-scores.log_softmax(-1)[target])
            expected += 0.3 / depth * torch.stack(each).sum() / (targets >= 0).sum()
        found = model.config.prediction.loss(model, model.hidden(IDS, documents), IDS, targets,
                                             documents if packed else None)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_its_gradient_joins_the_loss_and_only_in_training():
    model, targets = predicting("v3", 2).train(), IDS.roll(-1, 1)
    value = loss(model, IDS, targets, DOCUMENTS)
    found = torch.autograd.grad(value, list(model.parameters()))
    both = loss(model.eval(), IDS, targets, DOCUMENTS)
    assert value.item() == both.item() and not any(
        g is not None for g in torch.autograd.grad(both, list(model.model.layers[3:].parameters()),
                                                   allow_unused=True))
    more = model.config.prediction.loss(model, model.hidden(IDS, DOCUMENTS), IDS, targets, DOCUMENTS)
    names = [name for name, _ in model.named_parameters()]
    alone = torch.autograd.grad(more, list(model.parameters()), retain_graph=True)
    idle = [name for name, g in zip(names, alone) if not g.any() and ".experts." not in name]
    assert idle == []  # it reaches the embedding, the head and every layer
    expected = torch.autograd.grad(loss(model, IDS, targets, DOCUMENTS) + more, list(
        model.parameters()))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_not_known_does_not_count():
    model = predicting(depth=2).train()
    for ids, targets, documents in [
            (IDS[:, :1], IDS[:, :1], None),  # a row of one token has no token after the next
            (IDS, torch.where(torch.arange(24) == 0, IDS, -100), None),
            (IDS, IDS, torch.arange(24).expand(2, -1))]:
        value = loss(model, ids, targets, documents)
        value.backward()
        assert value.isfinite()  # and a gradient of 0, not None, is what a loop can clip
        assert not any(p.grad.any() for p in model.model.layers[3:].parameters())
        model.zero_grad()


def test_a_batch_is_the_mean_of_its_rows():
    """Micro-batches and ranks share it out by rows, wherever documents end in them."""
    model, targets = predicting("v3", 2).train(), IDS.roll(-1, 1)

    def more(rows):
        hidden = model.hidden(IDS[rows], DOCUMENTS[rows])
        return model.config.prediction.loss(model, hidden, IDS[rows], targets[rows],
                                            DOCUMENTS[rows]).item()
    assert more(slice(None)) == pytest.approx((more(slice(1)) + more(slice(1, None))) / 2, rel=1e-5)
    assert more(slice(1)) != pytest.approx(more(slice(1, None)), rel=1e-3)


def test_scoring_is_that_of_the_model_alone():
    model = predicting("v3")
    alone = build_with(*KINDS["v3"])
    alone.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                           if ".layers.3." not in name})
    documents = [ids.numpy() for ids in IDS]
    assert nats(model, documents) == nats(alone, documents)


def test_a_balance_of_the_past_is_no_part_of_a_score():
    experts = dataclasses.replace(PARTS["v2"][1], balance_loss=0.5)
    model = build_with(PARTS["v2"][0], experts, prediction=MultiToken())
    before = loss(model, IDS, IDS).item()
    assert loss(model.train(), IDS, IDS).item() > before
    assert loss(model.eval(), IDS, IDS).item() == before


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}, {"tie_word_embeddings": True}])
def test_less_memory_faster_parts_and_half_precision_give_the_same(changes):
    kind = "dense" if changes else "v3"
    plain = predicting(kind, 2, **changes).train()
    fast, selective, full = speed_up(copy.deepcopy(plain)), *(copy.deepcopy(plain) for _ in "ab")
    selective.activation_checkpointing, full.activation_checkpointing = "selective", "full"
    for documents in (None, DOCUMENTS):
        found = []
        for model in (plain, fast, selective, full):
            model.zero_grad()
            value = loss(model, IDS, IDS.roll(-1, 1), documents)
            value.backward()
            found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
        for others in found[1:]:
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0], others))
        exact = plain.model.layers[3].eh_proj.weight.grad
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss(plain, IDS, IDS.roll(-1, 1), documents).backward()
        rounded = plain.model.layers[3].eh_proj.weight.grad
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.3  # another expert, here and there


def test_its_matrices_go_to_muon():
    model = predicting("v3")
    muon, adamw = build_optimizers(model, "muon", 1e-3, 0.1)
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert matrices | others == {id(p) for p in model.parameters()} and not matrices & others
    assert id(model.model.layers[3].eh_proj.weight) in matrices
    assert {id(model.model.layers[3].enorm.weight), id(model.lm_head.weight)} <= others


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    parts = {"attention": PARTS["v3"][0], "prediction": MultiToken(2), "feed_forward":
             dataclasses.replace(PARTS["v3"][1], bias_speed=0.05)}
    results = []
    for name, stops in (("whole", [12]), ("stopped", [5, 12])):
        folder, model = make_run(tmp_path / name)
        model = dataclasses.replace(model, **parts)
        for stop in stops:
            config, patch = settings(folder, model, accumulation=2, save_every=5), pytest.MonkeyPatch()
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
    changed = dataclasses.replace(model, prediction=MultiToken(2, 0.1))
    with pytest.raises(ValueError, match="keeps these settings.*prediction"):
        train.train(settings(folder, changed, accumulation=2, steps=13), resume=True)


# --- transformers -------------------------------------------------------------------------------

def published(model, folder):
    """Write a folder as DeepSeek publishes it: each module with copies of embedding and head, and
    nothing in config.json that is ours."""
    save_model(model, folder)
    (folder / "checksums.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    for n in range(3, len(model.model.layers)):
        tensors[f"model.layers.{n}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 0
        tensors[f"model.layers.{n}.shared_head.head.weight"] = tensors["lm_head.weight"] + 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for name in ("loss_weight", "bias_speed", "balance_loss"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("parts", [*KINDS.values(), PARTS["latent alone"], PARTS["v2"]],
                         ids=[*KINDS, "latent alone", "v2"])
def test_transformers_opens_the_model_and_we_what_it_saves(parts, tmp_path):
    ours = build_with(*parts, prediction=MultiToken(), head_dim=(
        parts[0].qk_rope_head_dim if parts[0] else 8))
    save_model(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")  # without the module, which it does not hold
    again, bare = (load_model(tmp_path / name) for name in ("ours", "theirs"))
    assert again.config == ours.config
    assert bare.config == dataclasses.replace(ours.config, prediction=None)
    with torch.no_grad():
        logits = theirs(IDS).logits
        assert all(close(model(IDS), logits) for model in (ours, again, bare))
        vectors = [ahead(model, model.model.layers[3], model.hidden(IDS)[:, :-1], IDS[:, 1:])
                   for model in (ours, again)]
    assert torch.allclose(*vectors, atol=1e-5)


@pytest.mark.parametrize("kind", ["v3", "v3 groups"])
def test_the_module_is_that_of_transformers(kind, tmp_path):
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel
    ours = predicting(kind)
    for norm in (ours.model.norm, *(m for name, m in ours.model.layers[3].named_modules()
                                    if "norm" in name)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    folder = published(ours, tmp_path / "published")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    # It looks for the module under the number that it has in DeepSeek's own model.
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3\..*"]
    module, ids = MtpModel.from_pretrained(theirs), IDS[:1]
    opened = load_model(folder)
    with torch.no_grad():
        hidden = theirs.model(ids).last_hidden_state
        vectors = module.forward_layer(0, hidden[:, :-1], torch.arange(1, 24)[None],
                                       MtpCache(config=theirs.config.get_mtp_config()), ids[:, 1:])
        for model in (ours, opened):
            found = ahead(model, model.model.layers[3], model.hidden(ids)[:, :-1], ids[:, 1:])
            assert close(model.lm_head(found), theirs.lm_head(vectors))
    drafted = theirs.generate(ids[:, :5], max_new_tokens=20, do_sample=False, use_mtp=True,
                              eos_token_id=None, pad_token_id=0, attention_mask=torch.ones(1, 5))
    assert generate_ahead(ours, ids[0, :5].tolist(), 20)[0] == drafted[0, 5:].tolist()


def test_a_module_with_an_embedding_of_its_own_is_refused(tmp_path):
    folder = published(predicting("v3"), tmp_path / "published")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.shared_head.head.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="layers.3.shared_head.head.weight differs"):
        load_model(folder)


# --- generation ---------------------------------------------------------------------------------

@hypothesis_settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_drafted_text_is_that_of_the_plain_loop(data):
    """Exactly, in fp64; with few tokens to choose from, some drafts are right and some wrong."""
    vocabulary = data.draw(st.sampled_from([2, 3, 61]))
    parts = data.draw(st.sampled_from([
        (None, None), (Latent(12, None, 6, 4, 8), None), (Latent(12, 10, 6, 4, 8), Experts(16, 8, 2)),
        (None, Experts(12, 6, 2, first_k_dense_replace=1))]))
    model = build_with(*parts, seed=data.draw(st.integers(0, 99)), vocab_size=vocabulary,
                       num_hidden_layers=data.draw(st.integers(1, 3)), max_position_embeddings=20,
                       num_key_value_heads=data.draw(st.sampled_from([1, 2, 4])),
                       prediction=MultiToken(data.draw(st.integers(1, 2)))).double()
    if data.draw(st.booleans()):
        speed_up(model)
    prompt = data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=19))
    count = data.draw(st.integers(0, 22))
    row = list(prompt)
    with torch.no_grad():
        while len(row) < min(20, len(prompt) + count):
            row.append(model(torch.tensor([row]))[0, -1].argmax().item())
    found, accepted = generate_ahead(model, prompt, count)
    assert found == row[len(prompt):]
    # A pass gives a token, and one more for each accepted draft; the first has no draft.
    assert len(found) <= 1 + len(accepted) + sum(accepted) <= len(found) + 1 or not count


def test_drafts_that_are_right_halve_the_passes():
    """A model that only looks at the last token, and a module that does the same."""
    model = predicting().double()
    module = model.model.layers[3]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
        module.eh_proj.weight.copy_(torch.eye(32, 64))  # the embedding alone
    passes = []
    for layer in (model.model.layers[0], module):
        layer.register_forward_hook(lambda *_: passes.append(layer))
    ids, accepted = generate_ahead(model, [7], 41)
    assert all(accepted) and len(accepted) == 20 and len(passes) == 21 + 20
    with torch.no_grad():  # now it is wrong each time
        module.eh_proj.weight.neg_()
    wrong, accepted = generate_ahead(model, [7], 41)
    assert wrong == ids and not any(accepted) and len(accepted) == 40


# --- the count ----------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, depth", [("dense", 1), ("v3", 2), ("v3 groups", 1)])
def test_the_count_is_that_of_the_model(kind, depth):
    model = predicting(kind, depth).train()
    count = cost.parameters(model.config)
    assert count["total"] == sum(p.numel() for p in model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
            FlopCounterMode(display=False) as counter:
        loss(model, IDS, IDS).backward()
    # A module sees one position less in each row, or two: 23 or 22 of 24.
    each = cost.flops_per_token(model.config, 24)["total"]
    alone = cost.flops_per_token(dataclasses.replace(model.config, prediction=None), 24)["total"]
    found = counter.get_total_flops() / IDS.numel()
    assert alone + (each - alone) * (1 - 2.5 * depth / 24) < found < each
    assert cost.memory(model.config, 1, 24, "full")["weights"] == 4 * count["total"]


def test_the_published_module_has_its_published_size():
    """11.5 billion parameters besides what it shares (README_WEIGHTS.md of DeepSeek-V3)."""
    v3 = PRESETS["deepseek-v3"]
    count = cost.parameters(countable({**to_hugging_face(v3), "num_nextn_predict_layers": 1}))
    assert count["total"] - cost.parameters(v3)["total"] == pytest.approx(11.5e9, rel=0.01)


# --- bad input ----------------------------------------------------------------------------------

@pytest.mark.parametrize("values, message", [
    ((0,), "num_nextn_predict_layers is 0"), ((-1,), "is -1"), ((True,), "is True"), ((1.5,), "1.5"),
    ((1, -0.1), "loss_weight is -0.1"), ((1, float("nan")), "loss_weight is nan"),
    ((1, "0.3"), "loss_weight is '0.3'")])
def test_shapes_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MultiToken(*values)
    whole = to_hugging_face(predicting("v3").config)
    wrong = dict(zip(("num_nextn_predict_layers", "loss_weight"), values))
    if values[0]:  # 0 in a config.json: no module
        with pytest.raises(ValueError, match=message):
            from_hugging_face(whole | wrong)


def test_what_cannot_be_drafted_is_refused():
    for model, prompt, count, message in [
            (build_with(None, None), [1], 5, "no module to draft with"),
            (predicting(sliding_window=8), [1], 5, "sliding window"), (predicting(), [], 5, "0 tokens"),
            (predicting(), [1] * 64, 5, "64 tokens"), (predicting(), [1], -1, "-1 more"),
            (predicting(), [61], 5, "id 61")]:
        with pytest.raises(ValueError, match=message):
            generate_ahead(model, prompt, count)
