"""The modules that import no sibling copy out alone; importing any module does nothing."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import nanoseek

PACKAGE = pathlib.Path(nanoseek.__file__).parent
# module → a line of real use, so that a hidden import inside a function would be noticed
ALONE = {
    "stories": "assert len(stories.stories('zh', 2, 0)) == 2",
    "curate": "kept, report = curate.curate([{'text': 'A good day. ' * 9, 'source': 's'}], "
              "curate.CurateConfig()); assert report",
    "tokenizer": "t = tokenizer.Tokenizer.train(['low lower lowest'] * 9, 260); "
                 "assert t.decode(t.encode('low 低')) == 'low 低'",
    "data": "data.write_shards([{'text': 'abc' * 9, 'source': 's'}], lambda t: list(t.encode()), "
            "'tokens'); assert data.Loader('tokens', 1, 8).next_batch().inputs.shape == (1, 8)",
    "model": "import torch; m = model.Transformer(model.ModelConfig(hidden_size=8, "
             "intermediate_size=8)); assert m(torch.zeros(1, 3).long()).shape == (1, 3, 2048)",
    "optim": "assert optim.schedule_factor('multi_step', 99, 100, 0) == 0.1",
    "cost": "assert cost.parameters({'hidden_size': 8, 'num_hidden_layers': 1, "
            "'num_attention_heads': 2, 'num_key_value_heads': 1, 'intermediate_size': 16, "
            "'vocab_size': 32, 'max_position_embeddings': 8, 'tie_word_embeddings': True})",
}
# Data files that a module reads travel with it.
BESIDE = {"stories": ["stories_en.txt", "stories_zh.txt"], "cost": ["cost_tables.json"]}


def run_in(folder, code):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment,
                          capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("name", ALONE)
def test_module_works_alone_in_an_empty_folder(tmp_path, name):
    for file in [f"{name}.py", *BESIDE.get(name, [])]:
        shutil.copy(PACKAGE / file, tmp_path)
    done = run_in(tmp_path, "import importlib.util\n"
                  "assert importlib.util.find_spec('nanoseek') is None\n"
                  f"import {name}\n{ALONE[name]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_importing_reads_prints_and_seeds_nothing(tmp_path, path):
    done = run_in(tmp_path, f"""
import builtins, random, sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
import numpy, torch, regex, safetensors.torch, json, urllib.request  # their own reading is theirs
states = random.getstate(), torch.get_rng_state()
def refuse(path, *rest, **more):
    if "nanoseek" in str(path):
        raise AssertionError(f"importing opened {{path}}")
    return real(path, *rest, **more)
real, builtins.open = builtins.open, refuse
import nanoseek.{path.stem}
assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
