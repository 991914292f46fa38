"""subject.py: a folder of anyone scored as transformers scores it, ids that fit, few threads."""

import json
import shutil
import types

import pytest
import torch

from nanoseek.evaluate import document_nats
from nanoseek.lab import subject
from nanoseek.lab.subject import open_subject
from nanoseek.tokenizer import Tokenizer


def test_nats_agree_with_transformers_on_a_foreign_folder(folder):
    from tokenizers import Tokenizer as Theirs
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32)
    tokenizer = Theirs.from_file(str(folder / "llama" / "tokenizer.json"))
    texts = ["Tom had a ball.", "小明有一个皮球。", "Who has the kite now? 现在呢？"]
    total = 0.0
    for text in texts:
        ids = torch.tensor([[0, *tokenizer.encode(text).ids, 1]])
        assert ids.shape[1] <= 64
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    llama = open_subject(folder / "llama")
    found = document_nats(llama.model, [llama.ids(text) for text in texts])
    assert found.shape == (3,) and found.sum() == pytest.approx(total, rel=1e-4)


def test_a_long_text_slides_as_in_transformers_own_recipe(folder, documents):
    """Half a context at a time, each window scoring what the one before did not."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32)
    judged = open_subject(folder / "llama")
    text = documents[0]["text"]
    ids = torch.from_numpy(judged.ids(text))[None]
    total, done, start = 0.0, 0, 0
    while done < ids.shape[1] - 1:
        end = min(start + 65, ids.shape[1])
        labels = ids[:, start:end].clone()
        labels[:, :done - start + 1] = -100
        with torch.no_grad():
            part = model(input_ids=ids[:, start:end][:, :64], labels=None).logits
            logits = part[:, :end - start - 1] if end - start > 64 else part[:, :-1]
        picked = labels[:, 1:1 + logits.shape[1]]
        total += torch.nn.functional.cross_entropy(
            logits[0], picked[0], ignore_index=-100, reduction="sum").item()
        done = end - 1
        start = max(0, done - 32)
    assert ids.shape[1] > 100
    assert document_nats(judged.model, [judged.ids(text)])[0] == pytest.approx(total, rel=1e-4)


def test_small_models_have_one_core_to_themselves(monkeypatch):
    model, before = torch.nn.Linear(4, 4), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(subject, "SMALL", 20)
        subject.spare_threads(model)
        assert torch.get_num_threads() == 2  # as before: this model is not small
        monkeypatch.setattr(subject, "SMALL", 21)
        subject.spare_threads(model)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_run_is_found_from_its_checkpoint_and_its_data_where_its_settings_say(folder, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    shutil.copytree(folder / "ours", checkpoint)
    (checkpoint / "checksums.json").unlink()
    for tokens in (None, "", str(tmp_path / "elsewhere" / "shards")):
        if tokens is not None:
            (checkpoint / "trainer.json").write_text(json.dumps({"config": {"tokens": tokens}}))
        found = open_subject(checkpoint)
        assert found.run == tmp_path / "run"
        assert str(found.tokens) == (tokens or str(tmp_path / "run" / "tokens"))


@pytest.mark.parametrize("name, value", [("eos_token_id", 99999), ("eos_token_id", "x"),
                                         ("bos_token_id", 1.5), ("bos_token_id", [1])])
def test_a_document_cannot_begin_or_end_with_what_is_no_id(folder, tmp_path, name, value):
    shutil.copytree(folder / "ours", tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    with pytest.raises(ValueError, match="begins or ends a document, is no id"):
        open_subject(tmp_path / "m")


def test_a_model_without_any_token_that_ends_a_document_is_refused(tmp_path, folder):
    shutil.copytree(folder / "ours", tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    config, bare = tmp_path / "m" / "config.json", Tokenizer([], special_tokens=[])
    config.write_text(json.dumps(json.loads(config.read_text())
                                 | {"bos_token_id": None, "eos_token_id": None}))
    bare.save(tmp_path / "m" / "tokenizer.json")
    with pytest.raises(ValueError, match="no id ends a document"):
        open_subject(tmp_path / "m")


@pytest.mark.parametrize("config, generation, expected", [
    ({}, {}, ([5], [5])), ({"bos_token_id": 1, "eos_token_id": 2}, {}, ([1], [2])),
    ({"eos_token_id": [2, 3]}, {}, ([2], [2, 3])), ({"bos_token_id": None}, {}, ([5], [5])),
    ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 7]}, ([1], [2, 7])),
    ({"eos_token_id": None}, {"bos_token_id": 4, "eos_token_id": None}, ([4], [5]))])
def test_documents_begin_and_end_as_the_folder_says(tmp_path, config, generation, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    eot = types.SimpleNamespace(eot_id=5)
    assert subject.document_ends(tmp_path, eot, 99) == expected
    if not config:
        assert subject.document_ends(tmp_path, types.SimpleNamespace(eot_id=None), 99) == ([], [])
