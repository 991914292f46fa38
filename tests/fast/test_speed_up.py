"""fast/__init__.py: a model with all parts replaced is the same model."""

import copy
import pathlib
import subprocess
import sys

import pytest
import torch

from nanoseek import model as chapter
from nanoseek.fast import speed_up
from nanoseek.fast.onednn import use_exact_onednn
from test_model import KINDS, build, random_ids, relative_difference, saved_bytes

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(params=["torch's choice", "oneDNN"])
def products(request, monkeypatch):
    """Run with each library for fp32 products: only with oneDNN are short rows computed apart."""
    monkeypatch.setattr("nanoseek.fast.attention.WIDE_VECTORS", True)
    knob = torch.backends.mkldnn.matmul
    before = knob.fp32_precision
    if request.param == "oneDNN":
        use_exact_onednn()
    yield
    knob.fp32_precision = before


def results(model, ids, documents, targets, precision):
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        value = chapter.loss(model, ids[:, :-1], targets, documents)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        return value, model(ids[:, :-1], documents), *gradients


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_logits_loss_and_gradients_are_the_chapters(products, changes, precision):
    if "rope_scaling" in changes:
        changes = {"rope_scaling": chapter.RopeScaling(**changes["rope_scaling"])}
    model = build(chapter, **{"max_position_embeddings": 300, "initializer_range": 0.05,
                              **changes}).train()
    names = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    faster = speed_up(copy.deepcopy(model))
    # A window of one leaves q and k no gradient, so what is left of it is rounding: so small.
    limit, nothing = (2e-5, 1e-6) if precision == torch.float32 else (5e-2, 1e-4)
    for length in (1, 40, 290):  # a position, a short row, one longer than SHORT
        ids = random_ids(model.config, 2, length + 1)
        documents = (torch.arange(length) // 17).expand(2, length)
        left_out = torch.rand(2, length, generator=torch.Generator().manual_seed(0)) > 0.7
        left_out[:, 0] = False
        some = ids[:, 1:].masked_fill(left_out, -100)
        for given in ((None, ids[:, 1:]), (documents, some)):
            for found, expected in zip(results(faster, ids, *given, precision),
                                       results(model, ids, *given, precision)):
                assert (found - expected).abs().max() < nothing or \
                    relative_difference(found.float(), expected.float()) < limit
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == names
    assert faster.state_dict().keys() == names.keys()


def test_it_changes_classes_in_place_and_twice_is_once():
    model = build(chapter)
    weights = [p.data_ptr() for p in model.parameters()]
    assert speed_up(model) is model
    kinds = [type(module) for module in model.modules()]
    assert [type(module) for module in speed_up(model).modules()] == kinds
    assert not {chapter.Attention, chapter.Head, chapter.Transformer} & {*kinds}
    assert isinstance(model, chapter.Transformer)
    assert [p.data_ptr() for p in model.parameters()] == weights


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 9}])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_gives_the_same_gradients_for_fewer_saved_bytes(changes, precision):
    # Wide enough that autograd's own small change does not count.
    model = speed_up(build(chapter, num_hidden_layers=4, intermediate_size=96,
                           initializer_range=0.05, **changes).train())
    ids, gradients, kept = random_ids(model.config, 4, 41), [], []
    for mode in chapter.CHECKPOINTING:
        model.activation_checkpointing = mode
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            value = chapter.loss(model, ids[:, :-1], ids[:, 1:])
            gradients.append(torch.autograd.grad(value, list(model.parameters())))
            kept.append(saved_bytes(model, ids[:, :-1]))
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other))
    assert kept[2] < 0.6 * kept[1] < 0.6 * 0.7 * kept[0]


COMPILED = """
import importlib, sys, torch
module = importlib.import_module(sys.argv[1])
model = module.Transformer(module.ModelConfig(vocab_size=50, hidden_size=16, intermediate_size=24,
                                              num_hidden_layers=2))
ids = torch.arange(48).view(2, 24)
whole = torch.compile(model, fullgraph=True, backend="eager")
torch.testing.assert_close(whole(ids), model(ids))

ids = torch.arange(300).view(2, 150) % 50
whole = torch.compile(module.loss, fullgraph=True, dynamic=False, backend="aot_eager")
for theta in (10000.0, 3.0):  # a compiled step that took the first for a constant would show
    model = module.Transformer(module.ModelConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, rope_theta=theta,
        initializer_range=0.3))
    found, expected = (f(model, ids, ids.roll(-1)) for f in (whole, module.loss))
    torch.testing.assert_close(found, expected)
    weights = list(model.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(v, weights) for v in (found, expected)))
"""


def test_the_chapter_and_a_fast_model_compile_without_a_graph_break():
    """In a process of its own: the compiler leaves tensors behind that have no memory. In one for
    both: to load it takes seconds. Of the fast model, the loss is in several chunks."""
    fast = COMPILED.replace("module = importlib", "import nanoseek.fast\nimport nanoseek.fast.loss\n"
                            "nanoseek.fast.loss.LOGITS_CHUNK = 1\nmodule = importlib", 1)
    fast = fast.replace("module.Transformer(", "fast(").replace(
        "\nmodel = ", "\ndef fast(config):\n"
        "    return nanoseek.fast.speed_up(module.Transformer(config))\nmodel = ", 1)
    assert fast.count("= fast(") == 2
    code = f"{COMPILED}\nassert 'nanoseek.fast' not in sys.modules\ntorch._dynamo.reset()\n{fast}"
    subprocess.run([sys.executable, "-c", code, "nanoseek.model"], check=True, timeout=300, cwd=ROOT)


def test_importing_the_room_loads_no_torch():
    code = "import sys, nanoseek.fast; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
