"""The house: chapters stay short, arrows run one way, copies stand alone, every trick is shown.

The book is what lies directly in nanoseek/; the folders in it are the back rooms.
"""

import ast
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import nanoseek
from nanoseek.corpus.stories import stories

PACKAGE = pathlib.Path(nanoseek.__file__).parent
ROOT = PACKAGE.parent
# The page on copying out: module → its section, with what it needs and a few lines of real use, so
# that a hidden import inside a function is noticed.
PAGE = ROOT / "tutorials" / "COPYING_OUT.md"
ALONE = dict(re.findall(r"(?ms)^## (\w+)\.py\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8")))
CHAPTERS = {  # lines, docstrings and comments included
    "__init__": 10, "tokenizer": 260, "duplicates": 240, "curate": 300, "data": 300, "model": 300,
    "optim": 240, "train": 300, "checkpoint": 280, "generate": 150, "evaluate": 250, "cost": 300,
    "cli": 200}
BOOK, HOUSE = 2800, 6500
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def lines(path):
    return len(path.read_text("utf-8").splitlines())


def room(name):
    """Return "book" for a chapter, else the name of the back room that a module stands in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "book"


def imports(tree):
    """Return {module of nanoseek that is imported: whether only inside a function `main`}."""
    mains = {id(inner) for node in tree.body if getattr(node, "name", "") == "main"
             for inner in ast.walk(node)}
    found = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names = [f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES
                     else node.module for alias in node.names]
        for name in names:
            if name.split(".")[0] == "nanoseek":
                found[name] = found.get(name, True) and id(node) in mains
    return found


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}


# Lengths -----------------------------------------------------------------------------------------

def test_chapters_are_short_and_the_book_is_read_in_an_evening():
    book = {path.stem: lines(path) for path in PACKAGE.glob("*.py")}
    assert book.keys() == CHAPTERS.keys()
    assert {name: size for name, size in book.items()
            if size > CHAPTERS[name]} == {}
    assert sum(book.values()) <= BOOK


def test_the_house_stays_small():
    size = sum(lines(path) for name, path in FILES.items() if room(name) != "deepseek")
    assert size <= HOUSE


@pytest.mark.parametrize("name", FILES)
def test_functions_and_lines_fit_on_a_screen(name):
    long = [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(TREES[name])
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40]
    wide = [number for number, line in enumerate(FILES[name].read_text("utf-8").splitlines(), 1)
            if len(line) > 100]
    assert long == [] and wide == []


# Arrows ------------------------------------------------------------------------------------------

def test_no_circle_between_files():
    """A file that is reached from itself, also by an import inside a function, is a circle."""
    done, path = set(), []

    def visit(name):
        assert name not in path, " → ".join([*path[path.index(name):], name])
        if name in done:
            return
        path.append(name)
        for other in IMPORTS.get(name, {}):
            visit(other)
        done.add(path.pop())
    for name in FILES:
        visit(name)


# What a room may import at the top of its files; in a main() everything goes, but for circles.
ARROWS = {"book": {"book", "corpus", "scale"}, "corpus": {"corpus", "cli"},
          "fast": {"fast", "book"}, "scale": {"scale", "book", "deepseek"},
          "lab": {"lab", "book", "corpus", "scale", "fast", "deepseek"}, "deepseek": {"deepseek", "book"}}


@pytest.mark.parametrize("name", FILES)
def test_arrows_run_one_way(name):
    for other, only_in_main in IMPORTS[name].items():
        if only_in_main or name.endswith("__main__"):
            continue
        to = "cli" if other == "nanoseek.cli" else room(other)
        allowed = {*ARROWS[room(name)], "cli"}
        if name == "nanoseek.train":  # the top of the house
            allowed |= {"fast", "lab", "deepseek"}
        assert to in allowed, f"{name} → {other}"
        # A chapter leans on scale/ in two places: the loop, and config.json in Hugging Face's words.
        assert (to, room(name)) != ("scale", "book") or (name, other) == (
            "nanoseek.checkpoint", "nanoseek.scale.hugging_face") or name == "nanoseek.train"


# Copies ------------------------------------------------------------------------------------------

def path_of(file):
    """Return the path of a module, or of a data file beside one, wherever it stands."""
    (path,) = PACKAGE.rglob(file)
    return path


def files_of(name):
    """Return the file of a module and the data files that travel with it."""
    beside = re.search(r"Beside it: (.*?)\.\n", ALONE[name])
    return [f"{name}.py", *re.findall(r"`(.+?)`", beside[1] if beside else "")]


def run_in(folder, code, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("name", ALONE)
def test_module_works_alone_in_an_empty_folder(tmp_path, name):
    for file in files_of(name):
        shutil.copy(path_of(file), tmp_path)
    (code,) = re.findall(r"(?s)```python\n(.*?)```", ALONE[name])
    assert len(code.splitlines()) == 3
    done = run_in(tmp_path, "import importlib.util\n"
                  f"assert importlib.util.find_spec('nanoseek') is None\n{code}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", code) != []


def test_the_whole_program_runs_on_the_copies_it_names(tmp_path):
    section = PAGE.read_text("utf-8").split("## A whole program\n")[1]
    words, code = section.split("```python\n")[0], section.split("```")[1].removeprefix("python\n")
    *copies, program = re.findall(r"`(\w+\.py)`", words)
    for file in copies:
        shutil.copy(path_of(file), tmp_path)
    shorter = code.replace("RATE = 300, 8, 128", "RATE = 60, 4, 64")
    assert shorter != code and len(code.splitlines()) <= 50
    (tmp_path / program).write_text(shorter, encoding="utf-8")
    text = "\n\n".join(story.text for story in stories("en", 60, seed=3))
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    done = run_in(tmp_path, f"""
import importlib.util, runpy, sys
assert importlib.util.find_spec('nanoseek') is None
sys.argv[1:] = ['mine.txt']
runpy.run_path({program!r}, run_name='__main__')""")
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"step +\d+  loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3 and losses[0] - losses[-1] > 1
    sample = done.stdout.split(f"{losses[-1]:.3f}\n")[1]
    assert text.startswith(sample[:10]) and len(sample) > 50


def test_the_page_names_the_modules_that_stand_alone():
    assert {*ALONE} == {"stories", "duplicates", "tokenizer", "data", "model", "optim", "cost"}
    for name in ALONE:
        (found,) = (found for file, found in IMPORTS.items() if file.split(".")[-1] == name)
        assert all(found.values()), f"{name}.py imports {found} outside its main()"


@pytest.mark.parametrize("name", ALONE)
def test_the_page_says_what_a_module_needs(name):
    imported = set()
    for node in ast.parse(path_of(f"{name}.py").read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    needs = re.search(r"Needs: ([\w, ]+)", ALONE[name])[1]
    assert needs == (", ".join(sorted(imported - {*sys.stdlib_module_names})) or "nothing")


def test_every_import_of_the_package_finds_its_name():
    """Inside functions, too: an experiment that runs once a month must not end at its first line."""
    sources = {path: path.read_text("utf-8") for folder in ("nanoseek", "tutorials", "tests")
               for path in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / "tutorials").rglob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells
                                  if cell["cell_type"] == "code")
    found = [(path.name, node.module, name.name) for path, source in sources.items()
             for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
             and (node.module or "").split(".")[0] == "nanoseek" for name in node.names]
    missing = [entry for entry in found if f"{entry[1]}.{entry[2]}" not in FILES
               and not hasattr(importlib.import_module(entry[1]), entry[2])]
    assert len(found) > 500 and not missing


IMPORTED = [name for name in FILES if not name.endswith("__main__")]
# Each module is imported in a process of its own, forked from one that has the libraries, which take
# seconds to load, and ended without the second that they take to go.
IMPORTING = """
import builtins, importlib, os, random, sys, traceback
import numpy, torch, regex, safetensors.torch, json, urllib.request  # their own reading is theirs
root, *names = sys.argv[1:]
sys.path.insert(0, root)
real = builtins.open
def refuse(path, *rest, **more):
    if "nanoseek" in str(path):
        raise AssertionError(f"importing opened {path}")
    return real(path, *rest, **more)
def check(name):
    states = random.getstate(), torch.get_rng_state()
    builtins.open = refuse
    importlib.import_module(name)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    print("imported", file=done)
for name in names:
    os.mkdir(name)
    done, said = real(name + ".done", "w"), os.open(name + ".said", os.O_WRONLY | os.O_CREAT)
    if os.fork() == 0:
        os.dup2(said, 1), os.dup2(said, 2), os.chdir(name)
        try:
            check(name)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush(), done.flush(), os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder with, for each module, what importing it printed and wrote, and whether it ended."""
    folder = tmp_path_factory.mktemp("imported")
    done = run_in(folder, IMPORTING, ROOT, *IMPORTED)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stderr
    return folder


@pytest.mark.parametrize("name", IMPORTED)
def test_importing_reads_prints_and_seeds_nothing(imported, name):
    assert (imported / f"{name}.said").read_text("utf-8") == ""
    assert (imported / f"{name}.done").read_text("utf-8") == "imported\n"
    assert not list((imported / name).iterdir())


# Tricks ------------------------------------------------------------------------------------------

TRICKS = sorted(path.stem for path in (PACKAGE / "fast").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick_is_told_in_a_notebook_and_held_by_a_test(trick):
    named = f"fast/{trick}.py"
    assert any(named in path.read_text("utf-8") for path in (ROOT / "tutorials").glob("*.ipynb"))
    (test,) = (ROOT / "tests" / "fast").glob(f"test_{trick}.py")
    assert f"nanoseek.fast.{trick}" in test.read_text("utf-8") or \
        re.search(rf"from nanoseek\.fast import .*\b{trick}\b", test.read_text("utf-8"))
    assert lines(test) > 10 and "assert" in test.read_text("utf-8")


def test_the_map_in_the_readme_names_every_file():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, path in FILES.items():
        if path.stem not in ("__init__", "__main__"):
            assert re.search(rf"\b{path.stem}\.py\b", readme), f"README's map lacks {path.stem}.py"
