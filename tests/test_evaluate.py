"""evaluate.py: bits per byte against a plain sum, windows that score everything once."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoseek import cli, data, evaluate
from nanoseek.checkpoint import save_model
from nanoseek.model import ModelConfig, Transformer
from nanoseek.tokenizer import Tokenizer

EOT = 256


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=257, hidden_size=32, intermediate_size=48,
                                   num_hidden_layers=2, max_position_embeddings=32,
                                   initializer_range=0.1)).eval()


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_predict_every_id_once_with_enough_past(count, context, draw):
    stride = draw.draw(st.integers(1, context))
    seen = []
    for piece, skip in evaluate.windows(list(range(count)), context, stride):
        assert len(piece) <= context + 1
        for place, predicted in enumerate(piece[1:]):
            if place >= skip:
                seen.append(predicted)
                past = place + 1
                assert past == predicted or past >= context - stride
    assert seen == list(range(1, count))


def test_nats_equal_a_plain_sum_one_document_at_a_time(model):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 257, n) for n in (2, 33, 5, 17, 1, 29)]
    expected = 0.0
    with torch.no_grad():
        for ids in documents:
            logits = model(torch.from_numpy(ids[None, :-1])) if len(ids) > 1 else None
            if logits is not None:
                rows = logits[0].log_softmax(-1)
                expected -= rows[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])].sum().item()
    assert evaluate.nats(model, documents) == pytest.approx(expected, rel=1e-5)


def test_nats_equal_transformers_own_loss(model, tmp_path):
    from transformers import AutoModelForCausalLM
    save_model(model, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = torch.randint(257, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(input_ids=ids, labels=ids).loss.item() * 29
    assert evaluate.nats(model, [ids[0].numpy()]) == pytest.approx(expected, rel=1e-5)


def test_scores_by_source(model, tmp_path):
    def bytes_of(text):
        return list(text.encode("utf-8"))
    documents = [{"text": "train me", "source": "known"}, {"text": "training", "source": "free"},
                 {"text": "held", "source": "known", "split": "held_out", "log2_probability": -6.0},
                 {"text": "é", "source": "known", "split": "held_out", "log2_probability": -3.0},
                 {"text": "out", "source": "free", "split": "held_out"}]
    data.write_shards(documents, bytes_of, tmp_path / "t", 257, EOT)
    scores = evaluate.evaluate(model, tmp_path / "t")
    known, free = scores["known"], scores["free"]
    assert known.documents == 2 and known.bytes == 6 and known.floor == 9.0 / 6
    expected = evaluate.nats(model, [np.array([EOT, *bytes_of(text), EOT])
                                     for text in ("held", "é")])
    assert known.bits_per_byte == pytest.approx(expected / math.log(2) / 6)
    # Unigram by hand: 9 training tokens plus one for each of the 257 ids.
    counts = {token: bytes_of("training").count(token) for token in bytes_of("out")}
    bits = -sum(math.log2((n + 1) / (9 + 257)) for n in counts.values()) - math.log2(2 / 266)
    assert free.unigram == pytest.approx(bits / 3)
    assert free.floor is None and free.way_to_floor is None
    assert known.way_to_floor == pytest.approx(
        (known.unigram - known.bits_per_byte) / (known.unigram - 1.5))
    table = evaluate.format_scores(scores)
    assert "known" in table and "1.500" in table


def test_small_models_have_one_core_to_themselves(model, monkeypatch):
    monkeypatch.setattr(evaluate, "SMALL", sum(p.numel() for p in model.parameters()) + 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), evaluate.few_threads(model):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(evaluate, "SMALL", 10)
        with evaluate.few_threads(model):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_vocabulary_is_refused(model, tmp_path):
    data.write_shards([{"text": "a", "source": "s"}], lambda text: [1], tmp_path / "t", 300)
    with pytest.raises(ValueError, match="vocabulary of 300"):
        evaluate.evaluate(model, tmp_path / "t")


@pytest.mark.parametrize("name, value", [("eos_token_id", 99999), ("eos_token_id", "x"),
                                         ("bos_token_id", True), ("bos_token_id", [1])])
def test_a_document_cannot_begin_or_end_with_what_is_no_id(model, tmp_path, name, value):
    Tokenizer.train(["some text"], EOT + 1).save(tmp_path / "tokenizer.json")
    save_model(model, tmp_path / "m", tmp_path / "tokenizer.json")
    (tmp_path / "m" / "checksums.json").unlink()
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    with pytest.raises(ValueError, match="begins or ends a document"):
        evaluate.open_subject(tmp_path / "m")


def test_the_curve_is_a_well_formed_picture_with_floors(tmp_path):
    import xml.etree.ElementTree
    log = [{"tokens": 100 * i, "held_out": {"a<b": 4.0 / i, "b": 5.0 / i}} for i in (1, 2, 3)]
    log.insert(1, {"tokens": 150})
    evaluate.write_curve(log, {"b": 0.5}, tmp_path / "c.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "c.svg").getroot()
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2 and all(len(line.get("points").split()) == 3 for line in lines)
    assert sum("stroke-dasharray" in e.attrib for e in root.iter()) == 1


@pytest.mark.parametrize("arguments, message", [
    (["--samples", "-1"], "at least 0"), (["--judged", "-1"], "at least 0"), ([], "nowhere")])
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: evaluate.main(["nowhere", *arguments]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
