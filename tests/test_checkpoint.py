"""checkpoint.py: transformers opens what we write, we open what it writes, damage is named."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoseek import checkpoint
from nanoseek.checkpoint import save_model
from nanoseek.model import ModelConfig, RopeScaling, Transformer
from nanoseek.tokenizer import Tokenizer

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
         "initializer_range": 0.3}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(**SMALL)).eval()


def ids():
    return torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))


def relative_difference(one, other):
    return ((one - other).norm() / other.norm()).item()


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16}


@pytest.mark.parametrize("changes", [
    {}, {"tie_word_embeddings": False}, {"head_dim": 12}, {"sliding_window": 7},
    {"head_dim": 12, "hidden_size": 30},  # which transformers' Llama refuses
    {"rope_scaling": RopeScaling(**SCALING), "rope_theta": 500000.0}])
def test_transformers_opens_our_folder(tmp_path, changes):
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    ours = Transformer(ModelConfig(**{**SMALL, **changes})).eval()
    checkpoint.save_model(ours, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    with torch.no_grad():
        assert relative_difference(theirs(ids()).logits, ours(ids())) <= 1e-5
    assert checkpoint.load_model(tmp_path / "m").config == \
        dataclasses.replace(ours.config, head_dim=ours.config.head_size)


@pytest.mark.parametrize("changes", [
    {}, {"tie_word_embeddings": True}, {"num_key_value_heads": 1},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 77777.0}}, {"head_dim": 12},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}},
    {"sliding_window": 7}])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_we_open_folders_of_transformers(tmp_path, changes, shard):
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
    torch.manual_seed(0)
    theirs = MistralForCausalLM(MistralConfig(**{**SMALL, **changes})).eval() \
        if "sliding_window" in changes else LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    ours = checkpoint.load_model(tmp_path)
    with torch.no_grad():
        assert relative_difference(ours(ids()), theirs(ids()).logits) <= 1e-5


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v != "drop"}))
    (folder / "checksums.json").unlink(missing_ok=True)


@pytest.mark.parametrize("spelling", [
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}},
    {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **SCALING}},
    {"rope_theta": "drop", "rope_scaling": "drop",
     "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}}])
def test_every_spelling_of_the_rope_settings_is_read(tmp_path, model, spelling):
    checkpoint.save_model(model, tmp_path / "m")
    rewrite_config(tmp_path / "m", **spelling)
    config = checkpoint.load_model(tmp_path / "m").config
    assert config.rope_theta == 500000.0 and config.rope_scaling == RopeScaling(**SCALING)


def test_a_mistral_folder_that_names_no_window_has_the_usual_one(tmp_path):
    config = ModelConfig(**{**SMALL, "sliding_window": 7})
    checkpoint.save_model(Transformer(config), tmp_path / "m")
    rewrite_config(tmp_path / "m", sliding_window="drop")
    assert checkpoint.load_model(tmp_path / "m").config.sliding_window == 4096
    rewrite_config(tmp_path / "m", sliding_window=None)
    assert checkpoint.load_model(tmp_path / "m").config.sliding_window is None


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "qwen2"}, "'qwen2'"), ({"attention_bias": True}, "attention_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"), ({"hidden_size": "drop"}, "hidden_size = None"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type = 'yarn'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor = None"),
    ({"rope_scaling": {**SCALING, "rope_type": "llama3", "factor": "8"}}, "factor = '8'"),
    ({"rope_scaling": 8.0}, "rope_scaling = 8.0"), ({"model_type": ["llama"]}, "'llama'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
      "rope_scaling": {**SCALING, "rope_type": "llama3"}}, "rope_parameters = .*rope_scaling = .*remove the one"),
    ({"rope_interleaved": True}, "rope_interleaved"),
    ({"sliding_window": 16}, "sliding_window = 16"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0"),
    ({"hidden_size": "32"}, "hidden_size = '32'"), ({"vocab_size": 97.5}, "vocab_size = 97.5"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
    ({"intermediate_size": 60}, r"gate_proj.weight.*\[56, 32\]"),
    ({"num_hidden_layers": 3}, "Missing.*model.layers.2"),
    ({"num_hidden_layers": 1}, "Unexpected.*model.layers.1"),
    ({"num_hidden_layers": 10 ** 9}, "asks for .* parameters, but the weights are"),  # not built
    ({"vocab_size": 10 ** 19}, "asks for .* parameters"),
    ({"hidden_size": 4 * 10 ** 19}, "asks for .* parameters"),
    ({"intermediate_size": 10 ** 19}, "asks for .* parameters"),
    ({"num_key_value_heads": 4}, r"k_proj.weight.*\[16, 32\]"),
    ({"head_dim": 10 ** 19}, "asks for .* parameters"),
    ({"num_attention_heads": 5}, "num_attention_heads 5")])
def test_foreign_folders_are_refused_by_name(tmp_path, model, changes, message):
    checkpoint.save_model(model, tmp_path / "m")
    rewrite_config(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_model(tmp_path / "m")


def test_only_folders_that_a_run_named_are_its_checkpoints(tmp_path, model):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, step, model, {}, {})
    copy = tmp_path / "checkpoints" / "step-00000001-mine"
    (tmp_path / "checkpoints" / "step-00000001").rename(copy)
    (tmp_path / "checkpoints" / "step-00000003").write_text("no folder")
    assert checkpoint.newest_intact(tmp_path).name == "step-00000002"
    for step in (4, 5):
        checkpoint.save_checkpoint(tmp_path, step, model, {}, {})
    assert copy.is_dir()


def test_a_pickle_is_never_opened(tmp_path, model):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)
    checkpoint.save_model(model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "checksums.json").unlink()
    torch.save(Bomb(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be safetensors"):
        checkpoint.load_model(tmp_path / "m")
    torch.save(Bomb(), tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match="damaged or missing.*must be safetensors"):
        checkpoint.load_model(tmp_path / "m")
    assert not (tmp_path / "exploded").exists()


def test_damage_to_a_folder_of_others_is_named(tmp_path, model):
    """No checksums there: what is read must be enough to notice."""
    checkpoint.save_model(model, tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 9, 3, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            checkpoint.load_model(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.norm.weight": "model-00002.safetensors"}}')
    with pytest.raises(ValueError, match="model-00002.safetensors is damaged or missing"):
        checkpoint.load_model(tmp_path / "m")
    index.write_text('{"weight": 1}')
    with pytest.raises(ValueError, match="holds no weight_map"):
        checkpoint.load_model(tmp_path / "m")


def save(run, step, model, value=0.0):
    return checkpoint.save_checkpoint(run, step, model, {"a.b": torch.full((3,), value)},
                                      {"step": step})


def test_checkpoints_round_trip_and_old_ones_go(tmp_path, model):
    for step in (1, 2, 3):
        folder = save(tmp_path, step, model, float(step))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == \
        ["step-00000002", "step-00000003"]
    tensors, state = checkpoint.load_checkpoint(folder)
    assert tensors["a.b"].tolist() == [3.0] * 3 and state == {"step": 3}
    opened = checkpoint.load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)


def test_the_best_checkpoint_outlives_the_newest(tmp_path, model):
    scores = [None, 3.0, 2.0, 2.5, None, 2.7, 1.5, 1.9, 1.9]
    kept = []
    for step, score in enumerate(scores, 1):
        checkpoint.save_checkpoint(tmp_path, step, model, {"a.b": torch.zeros(1)},
                                   {"score": score}, keep=2)
        kept.append([int(path.name[5:]) for path in checkpoint.checkpoints(tmp_path)])
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [3, 4, 5], [3, 5, 6], [6, 7], [7, 8], [7, 8, 9]]
    assert checkpoint.find_checkpoint(tmp_path).name == "step-00000009"
    best = checkpoint.find_checkpoint(tmp_path, best=True)
    assert best.name == "step-00000007"
    (best / "trainer.json").write_text('{"score": "x"}')  # damaged: no score, and passed over
    assert checkpoint.find_checkpoint(tmp_path, best=True).name == "step-00000009"


def test_a_damaged_later_checkpoint_does_not_push_out_the_one_just_written(tmp_path, model):
    for step in (4, 8):
        save(tmp_path, step, model)
    (tmp_path / "checkpoints" / "step-00000008" / "trainer.json").write_text("{")
    for step in (5, 6):  # the run went on from step 4
        checkpoint.save_checkpoint(tmp_path, step, model, {"a.b": torch.zeros(1)}, {}, keep=1)
        assert checkpoint.newest_intact(tmp_path, print).name == f"step-{step:08d}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trainer.safetensors",
                                  "trainer.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["flip 0", "flip 1/2", "flip 1", "cut", "empty", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, model, name, damage):
    save(tmp_path, 1, model)
    path = save(tmp_path, 2, model) / name
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        place = {"flip 0": 0, "flip 1": len(whole) - 1}.get(damage, len(whole) // 2)
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:]
        path.write_bytes(flipped if "flip" in damage else whole[:place * (damage == "cut")])
    said = []
    found = checkpoint.newest_intact(tmp_path, said.append)
    assert found.name == "step-00000001"
    assert len(said) == 1 and (name in said[0] or name == "checksums.json")
    with pytest.raises(ValueError, match="missing|damaged"):
        # Without these two, the folder passes for a run, or for one of another program.
        checkpoint.find_checkpoint(path.parent) if damage != "remove" or \
            name not in ("config.json", "checksums.json") else checkpoint.verify(path.parent)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trainer.json",
                                  "trainer.safetensors"])
def test_checksums_that_do_not_list_a_file_are_damaged(tmp_path, model, name):
    path = save(tmp_path, 1, model) / "checksums.json"
    listed = json.loads(path.read_text())
    for left in ({k: v for k, v in listed.items() if k != name}, {}):
        path.write_text(json.dumps(left))
        with pytest.raises(ValueError, match="checksums.json is damaged: it does not list"):
            checkpoint.verify(path.parent)
    assert checkpoint.newest_intact(tmp_path, lambda text: None) is None


def test_a_save_that_fails_leaves_the_earlier_ones_and_no_rubbish(tmp_path, model, monkeypatch):
    save(tmp_path, 1, model)

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, model)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpoint.verify(checkpoint.newest_intact(tmp_path))


def test_what_a_killed_save_left_is_cleared_away(tmp_path, model):
    save(tmp_path, 1, model)
    stale = tmp_path / "checkpoints" / ".writing-dead"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", stale)
    save(tmp_path, 2, model)
    assert not stale.exists()
    assert len(checkpoint.checkpoints(tmp_path)) == 2


def test_two_saves_side_by_side_do_not_disturb_each_other(tmp_path, model):
    for one, other in (("a", "b"), ("c", "c")):  # in one place, and under one name
        with checkpoint._writing_folder(tmp_path / one) as new:
            checkpoint._write_model(model, new, None)
            checkpoint.save_model(model, tmp_path / other)
    assert {path.name for path in tmp_path.iterdir()} == {*"abc"}
    for name in "abc":
        checkpoint.verify(tmp_path / name)


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, model, monkeypatch):
    checkpoint.save_model(model, tmp_path / "m")
    before, real = (tmp_path / "m" / "model.safetensors").read_bytes(), os.replace

    def fail(source, target):
        if source.name == "new":  # the folder that stood there has made way already
            raise KeyboardInterrupt
        real(source, target)
    monkeypatch.setattr(os, "replace", fail)
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_model(model, tmp_path / "m")
    checkpoint.verify(tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        checkpoint.load_model(tmp_path)


def test_half_precision_weights_open_in_fp32(tmp_path, model):
    checkpoint.save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    (tmp_path / "m" / "checksums.json").unlink()
    opened = checkpoint.load_model(tmp_path / "m")
    assert {p.dtype for p in opened.parameters()} == {torch.float32}
    assert torch.equal(opened.model.norm.weight, model.model.norm.weight.bfloat16().float())


@pytest.mark.parametrize("specials, end", [(["<|endoftext|>"], "<|endoftext|>"), ([], None)])
def test_the_folder_names_an_end_token_where_the_tokenizer_has_one(tmp_path, model, specials, end):
    Tokenizer([], special_tokens=specials).save(tmp_path / "tokenizer.json")
    if end:  # an id that the model has not
        with pytest.raises(ValueError, match="its 256 is no id of the model"):
            save_model(model, tmp_path / "m", tmp_path / "tokenizer.json")
        model = Transformer(ModelConfig(**{**SMALL, "vocab_size": 257}))
    save_model(model, tmp_path / "m", tmp_path / "tokenizer.json")
    said = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert said["eos_token"] == said["bos_token"] == end


def test_published_folders_with_more_or_fewer_settings_open(tmp_path, model):
    checkpoint.save_model(model, tmp_path / "m")
    rewrite_config(tmp_path / "m", is_llama_config=True, tokenizer_class="X", temperature=0.6,
                   rope_theta=None, rms_norm_eps="drop", initializer_range="drop")
    expected, opened = model.config, checkpoint.load_model(tmp_path / "m").config
    assert dataclasses.replace(opened, initializer_range=0.3, head_dim=None) == expected
    rewrite_config(tmp_path / "m", max_position_embeddings="drop", num_key_value_heads=2)
    assert checkpoint.load_model(tmp_path / "m").config.max_position_embeddings == 2048


def test_a_head_that_the_config_would_throw_away_is_named(tmp_path):
    model = Transformer(ModelConfig(**{**SMALL, "tie_word_embeddings": False}))
    checkpoint.save_model(model, tmp_path / "m")
    rewrite_config(tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="has a head of its own"):
        checkpoint.load_model(tmp_path / "m")


def test_a_save_replaces_folders_only_and_leaves_what_others_may_read(tmp_path, model):
    os.mkfifo(tmp_path / "pipe")  # as a device
    with pytest.raises(ValueError, match="is no folder"):
        checkpoint.save_model(model, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("m")
    before = os.umask(0o027)
    try:
        checkpoint.save_model(model, tmp_path / "link")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "m").is_dir()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {0o640}
    (tmp_path / "m" / "config.json").unlink()
    os.mkfifo(tmp_path / "m" / "config.json")
    with pytest.raises(ValueError, match="config.json is damaged"):  # not waited for
        checkpoint.verify(tmp_path / "m")
