"""The course kit: starters earn nothing, the modules themselves everything, mistakes one line."""

import ast
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
spec = importlib.util.spec_from_file_location("make_starters", TUTORIALS / "make_starters.py")
make_starters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_starters)
TESTS_OF_STORIES = ROOT / "tests" / "corpus" / "test_stories.py"
SOURCES = {name: make_starters.path_of(f"{name}.py").read_text("utf-8")
           for name in make_starters.BLANKS}


def grade(folder, *calls):
    """Grade [(module's test file, file to grade)], all in one process, which imports torch once.

    Returns the exit code of each and what it printed.
    """
    arguments = [[str(test) for name in names.split()
                  for test in (ROOT / "tests").rglob(f"test_{name}.py")]
                 + ["--module", str(file), "-q", "--tb=no", "-p", "no:cacheprovider"]
                 for names, file in calls]
    done = subprocess.run(
        [sys.executable, "-c", "import pytest\n"
         f"for call in {arguments!r}:\n    print('\\f', int(pytest.main(call)), flush=True)"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    *parts, rest = re.split(r"(?m)^\f (\d)\n", done.stdout)
    assert len(parts) == 2 * len(calls) and not rest, done.stdout
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2])]


def points(said):
    """Return N and M of the last line, "N of M contract tests pass"."""
    return [*map(int, re.search(r": (\d+) of (\d+) contract tests pass$", said.rstrip()).groups())]


@pytest.fixture(scope="module")
def starters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "starters"
    make_starters.main([str(folder)])
    return folder


def test_starters_earn_nothing_and_the_modules_everything(starters, tmp_path):
    calls = []
    for name in SOURCES:
        (tmp_path / name).mkdir()
        for file in [f"{name}.py", *make_starters.BESIDE.get(name, [])]:
            shutil.copy(make_starters.path_of(file), tmp_path / name)
        calls += [(name, starters / f"{name}.py"), (name, tmp_path / name / f"{name}.py")]
    results = grade(tmp_path, *calls)
    for (name, _), (starter_code, starter_said), (code, said) in zip(
            calls[::2], results[::2], results[1::2]):
        earned, most = points(starter_said)
        assert (starter_code, earned) == (1, 0) and most >= 4, (name, starter_said)
        assert (code, points(said)) == (0, [most, most]), (name, said)


def test_each_body_that_is_missing_costs_points(tmp_path):
    names = make_starters.BLANKS["stories"]
    for file in make_starters.BESIDE["stories"]:
        shutil.copy(make_starters.path_of(file), tmp_path)
    for number, name in enumerate(names):
        text = make_starters.starter(SOURCES["stories"], {name: ""})
        (tmp_path / f"{number}.py").write_text(text, encoding="utf-8")
    earned = {}
    for name, (code, said) in zip(names, grade(
            tmp_path, *[("stories", f"{number}.py") for number in range(len(names))])):
        earned[name], most = points(said)
        assert code == 1 and earned[name] < most, name
    assert 0 < earned["log2_probability"]  # who can write stories but not read them


@pytest.mark.parametrize("name", SOURCES)
def test_a_starter_keeps_all_signatures_and_docstrings_but_no_solution(starters, name):
    text = (starters / f"{name}.py").read_text("utf-8")
    own, left = (dict(make_starters.definitions(ast.parse(t))) for t in (SOURCES[name], text))
    gone = {n for n in own for helper in make_starters.HELPERS.get(name, ())
            if n == helper or n.startswith(f"{helper}.")}
    assert left.keys() == own.keys() - gone
    for qualified, node in left.items():
        assert ast.get_docstring(node) == ast.get_docstring(own[qualified])
        if isinstance(node, ast.FunctionDef):
            assert ast.dump(node.args) == ast.dump(own[qualified].args)
            empty = [ast.unparse(line) for line in node.body[ast.get_docstring(node) is not None:]]
            assert (empty == [f"raise NotImplementedError('{qualified}')"]) == (
                qualified in make_starters.BLANKS[name])
    # Nothing that stays needs what went.
    used = {node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Name, ast.Attribute))}
    assert not used & {helper.split(".")[-1] for helper in make_starters.HELPERS.get(name, ())}
    assert max(map(len, {*text.splitlines()} - {*SOURCES[name].splitlines()})) <= 100
    assert (starters / "LICENSE").is_file()
    assert all((starters / file).is_file() for file in make_starters.BESIDE.get(name, ()))


def test_starters_replace_nothing(starters, tmp_path, capsys):
    (tmp_path / "optim.py").write_text("my work")
    for arguments, message in ((["optim", "cost"], "somebody's work"),
                               (["optin"], "no starter of optin: choose stories")):
        with pytest.raises(SystemExit) as stopped:
            make_starters.main([str(tmp_path), *arguments])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and message in said and said.count("\n") == 1
    assert (tmp_path / "optim.py").read_text() == "my work" and len([*tmp_path.iterdir()]) == 1
    with pytest.raises(ValueError, match="no absent"):
        make_starters.starter("x = 1\n", {"absent": ""})


def test_what_cannot_be_graded_is_named_in_one_line(tmp_path):
    for name, text in (("broken.py", "x = 1\ndef f(:\n"), ("fails.py", "import os\n1 / 0\n"),
                       ("leaves.py", "raise SystemExit(3)\n"), ("notes.txt", "hello\n"),
                       ("other.py", SOURCES["optim"]), ("stories.py", SOURCES["stories"])):
        (tmp_path / name).write_text(text, encoding="utf-8")
    calls = {("stories", "absent.py"): "absent.py: no such file",
             ("stories", "broken.py"): "does not import: SyntaxError: .*line 2",
             ("stories", "fails.py"): "fails.py, line 2: it does not import: ZeroDivisionError",
             ("stories", "leaves.py"): "line 1: it does not import: SystemExit",
             ("stories", "notes.txt"): "no Python file",
             ("stories", "other.py"):
                 "other.py lacks Grammar, log2_probability, .*copies of nanoseek.corpus.stories",
             ("stories tokenizer", "stories.py"): "name one of test_cost.py, test_data.py, ",
             ("cli", "stories.py"): "name one of test_cost.py, test_data.py, "}
    for call, (code, said) in zip(calls, grade(tmp_path, *calls)):
        lines = [line for line in said.splitlines() if line.startswith("ERROR: ")]
        assert code == pytest.ExitCode.USAGE_ERROR and len(lines) == 1, said
        assert re.search(calls[call], lines[0]) and "Traceback" not in said, said


def test_the_command_of_the_page_grades_a_file_from_any_folder(tmp_path):
    for file in ("stories.py", *make_starters.BESIDE["stories"]):
        shutil.copy(make_starters.path_of(file), tmp_path)
    (tmp_path / "stories.py").rename(tmp_path / "my stories.py")
    done = subprocess.run([sys.executable, "-m", "pytest", TESTS_OF_STORIES,
                           "--module", "my stories.py", "-p", "no:cacheprovider"],
                          cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    earned, most = points(done.stdout)
    assert done.returncode == 0 and earned == most
    assert done.stdout.splitlines()[-1].startswith("my stories.py: ")


def test_the_page_for_teachers_knows_every_notebook_and_starter():
    page = (TUTORIALS / "README.md").read_text("utf-8")
    for path in TUTORIALS.glob("[0-9]*.ipynb"):
        assert path.stem in page
    rows = dict(re.findall(r"(?m)^\| `(\w+)\.py` \|.*\| (\d+) \|$", page))
    assert rows.keys() == SOURCES.keys()
    assert sum(map(int, rows.values())) == 100


# The notebooks.
IN_FORM = sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
IN_CHINESE = sorted(path.stem for path in (TUTORIALS / "zh").glob("*.ipynb"))


def cells(name):
    """Return a notebook's cells, each with its source as one text."""
    content = json.loads((TUTORIALS / f"{name}.ipynb").read_text("utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]


@pytest.mark.parametrize("name", [*IN_FORM, *(f"zh/{name}" for name in IN_CHINESE)])
def test_code_cells_are_short_and_stored_as_executed_without_an_error(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        assert len(cell["source"].splitlines()) <= 20, cell["source"]
        assert max(map(len, cell["source"].splitlines())) <= 100, cell["source"]
        assert all(output["output_type"] != "error" for output in cell["outputs"]), cell["source"]


@pytest.mark.parametrize("name", IN_FORM)
def test_guesses_begin_as_none_and_each_is_shown_beside_the_answer(name):
    source = "\n".join(cell["source"] for cell in cells(name) if cell["cell_type"] == "code")
    guesses = re.findall(r"(?m)^(my_guess\w*) = (.*?)(?: *#.*)?$", source)
    assert guesses and {value for _, value in guesses} == {"None"}
    for guess, _ in guesses:
        assert len(re.findall(rf"\b{guess}\b", source)) > 1, f"{guess} is never shown"


@pytest.mark.parametrize("name", IN_FORM)
def test_exercises_are_stored_unsolved_with_a_folded_hint(name):
    exercises = [(above, cell) for above, cell in zip(cells(name), cells(name)[1:])
                 if "# check\n" in cell["source"]]
    assert len(exercises) >= 4
    for above, cell in exercises:
        assert "<details><summary>Hint</summary>" in above["source"], above["source"]
        (output,) = cell["outputs"]
        assert "".join(output["text"]).startswith("not done yet"), cell["source"]


@pytest.mark.parametrize("name", IN_CHINESE)
def test_a_notebook_in_chinese_has_the_cells_and_the_code_of_the_english_one(name):
    english, chinese = cells(name), cells(f"zh/{name}")
    assert [cell["cell_type"] for cell in chinese] == [cell["cell_type"] for cell in english]
    for ours, theirs in zip(chinese, english):
        if ours["cell_type"] == "code":  # only the language of the stories may differ
            assert ours["source"] == theirs["source"].replace('LANGUAGE = "en"', 'LANGUAGE = "zh"')
        else:
            assert re.search("[\u4e00-\u9fff]", ours["source"]), ours["source"]
            for mark in (r"(?m)^#+ ", "<details>", "\\$\\$", r"(?m)^\|"):
                assert len(re.findall(mark, ours["source"])) == len(
                    re.findall(mark, theirs["source"])), ours["source"]


def script(name):
    spec = importlib.util.spec_from_file_location("script", TUTORIALS / name)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_blank_copies_hold_the_sources_and_no_answers_and_spare_what_a_student_wrote(tmp_path):
    blank = script("blank.py").blank
    names = sorted(path.name for path in TUTORIALS.rglob("[0-9]*.ipynb"))
    assert sorted(blank(TUTORIALS, tmp_path)) == names
    for path in TUTORIALS.rglob("[0-9]*.ipynb"):
        copy = json.loads((tmp_path / path.relative_to(TUTORIALS)).read_text("utf-8"))
        sources = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"]]
        assert [cell["source"] for cell in copy["cells"]] == sources
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in copy["cells"])
    (tmp_path / "01_tokenizer.ipynb").write_text("a student's work")
    assert blank(TUTORIALS, tmp_path) == []
    assert (tmp_path / "01_tokenizer.ipynb").read_text() == "a student's work"


@pytest.mark.parametrize("printed, error, state", [
    ("not done yet: see", None, "open"), ("7 rows\nright", None, "right"), ("", None, "nothing"),
    ("right, at first", "AssertionError", "AssertionError"), ("", "NameError", "NameError")])
def test_the_check_of_the_solutions_tells_open_from_right_from_wrong(printed, error, state):
    check = script("solutions/check.py")
    outputs = [types.SimpleNamespace(output_type="stream", text=printed)] if printed else []
    outputs += [types.SimpleNamespace(output_type="error", ename=error)] if error else []
    assert check.state(types.SimpleNamespace(outputs=outputs)) == state
