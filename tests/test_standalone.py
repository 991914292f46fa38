"""The modules that import no sibling copy out alone; importing any module does nothing."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import nanoseek

PACKAGE = pathlib.Path(nanoseek.__file__).parent
# The page on copying out: module → its section, with what it needs and a few lines of real use, so
# that a hidden import inside a function is noticed.
PAGE = PACKAGE.parent / "tutorials" / "COPYING_OUT.md"
ALONE = dict(re.findall(r"(?ms)^## (\w+)\.py\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8")))


def files_of(name):
    """Return the file of a module and the data files that travel with it."""
    beside = re.search(r"Beside it: (.*?)\.\n", ALONE[name])
    return [f"{name}.py", *re.findall(r"`(.+?)`", beside[1] if beside else "")]


def run_in(folder, code):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment,
                          capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("name", ALONE)
def test_module_works_alone_in_an_empty_folder(tmp_path, name):
    for file in files_of(name):
        shutil.copy(PACKAGE / file, tmp_path)
    (code,) = re.findall(r"(?s)```python\n(.*?)```", ALONE[name])
    assert len(code.splitlines()) == 3
    done = run_in(tmp_path, "import importlib.util\n"
                  f"assert importlib.util.find_spec('nanoseek') is None\n{code}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", code) != []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_page_names_every_module_that_stands_alone_and_what_it_needs(path):
    tree = ast.parse(path.read_text("utf-8"))
    imported = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import)
                for alias in node.names}
    imported |= {node.module.split(".")[0] for node in tree.body
                 if isinstance(node, ast.ImportFrom)}
    alone = "nanoseek" not in imported and path.stem not in ("__init__", "cli")
    assert alone == (path.stem in ALONE)
    if alone:
        needs = re.search(r"Needs: ([\w, ]+)", ALONE[path.stem])[1]
        assert needs == (", ".join(sorted(imported - {*sys.stdlib_module_names})) or "nothing")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
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
