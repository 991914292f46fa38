"""The set-up script answers an old Python, or a machine without a PyTorch build, in one line.

And the Makefile hands a name on as it is: it never runs as code, and never reaches beyond its run.
"""

import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

import halves

ROOT = pathlib.Path(__file__).parent.parent
SETUP = ROOT / ".ci" / "setup"

PIP_FAILS = """#!/bin/sh
case "$*" in
  *version_info*) exit 0 ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"-m pip"*) echo "ERROR: No matching distribution found for {missing}" >&2; exit 1 ;;
  *-V*) echo "Python 3.99.0" ;;
esac
"""


def run_setup(folder, python_script):
    python = folder / "some-python"
    python.write_text(python_script)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return subprocess.run(["sh", str(SETUP), "requirements.txt"], cwd=folder, text=True,
                          env={**os.environ, "PYTHON": str(python), "PIP_ARGS": ""},
                          capture_output=True)


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    done = run_setup(tmp_path, "#!/bin/sh\nexit 1\n")
    assert done.returncode == 2
    assert "needs Python 3.10 or newer" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_cannot_make_an_environment_is_named(tmp_path):
    done = run_setup(tmp_path, '#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\n')
    assert done.returncode == 2
    assert "install its venv package" in done.stderr and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("missing, message", [("torch==2.13.0", "PyTorch has no build"),
                                              ("regex", "could not install requirements.txt")])
def test_what_pip_could_not_install_is_said(tmp_path, missing, message):
    done = run_setup(tmp_path, PIP_FAILS.format(missing=missing))
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_machine_without_a_network_is_told_so(tmp_path):
    said = "WARNING: Retrying (Retry(total=4)) after connection broken\\nERROR: No matching " \
           "distribution found for torch"
    done = run_setup(tmp_path, PIP_FAILS.replace('echo "ERROR: No matching distribution found for '
                                                 '{missing}"', f"printf '{said}'"))
    assert done.returncode == 2 and "did not reach the internet" in done.stderr.splitlines()[-1]


def test_a_clone_on_windows_keeps_line_ends():
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text("utf-8")


# Writes what each stage would write, and in said.txt its arguments.
STAND_IN = """#!/bin/sh
printf '[%s]' "$@" >> said.txt
echo >> said.txt
case "$2" in
  nanoseek.corpus) mkdir -p "${3%/*}"; touch "$3" ;;
  nanoseek.curate) touch "$4" ;;
  nanoseek.tokenizer) touch "$5" ;;
  nanoseek.data) mkdir -p "$5"; touch "$5/manifest.json" ;;
  nanoseek.train) touch "$6/cost.json" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Return make(goal, *variables) → (the finished process, the stages' arguments), in tmp_path."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "installed").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}

    def call(*arguments, **variables):
        said = tmp_path / "said.txt"
        said.unlink(missing_ok=True)
        done = subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env=environment | variables, encoding="utf-8")
        return done, said.read_text("utf-8").splitlines() if said.exists() else []
    return call


NAMES = ["c`touch pwned`.txt", "$(touch pwned).txt", "$(shell touch pwned)", 'a"; touch pwned; "',
         "a'; touch pwned; '", "-rf", "--help", "a b  c.txt", "${HOME}", "$$", "a#b", "a\\b", "100%.txt",
         "x); touch pwned; (", "小明.txt", "folder/"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_text_or_a_prompt_is_never_run(tmp_path, make, name, way):
    given = ([f"TEXT={name}", f"PROMPT={name}"], {}) if way == "argument" else \
        ([], {"TEXT": name, "PROMPT": name})
    done, said = make("train-tiny", *given[0], **given[1])
    assert done.returncode == 0, done.stderr
    assert f"[--text={name}]" in said[0] and len(said) == 6
    (run,) = (tmp_path / "runs").iterdir()
    assert f"runs/{run.name}/tokens" in said[3] and "--restart_on_new_data" in said[4]
    done, said = make("sample", *given[0], **given[1])
    assert said == [f"[-m][nanoseek.generate][runs/{run.name}][--prompt={name}]"]
    assert not (tmp_path / "pwned").exists()


def test_a_run_keeps_the_folder_that_its_text_has_always_had(tmp_path, make):
    make("train-tiny", "TEXT=/books/my book.txt")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["my-book-txt-1170042109"]


@pytest.mark.parametrize("run", ["", " ", "runs/my run", "a`touch pwned`", "a;touch pwned", "$(HOME)",
                                 "a'b", "a*", "a:b", "a=b"])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_run_s_folder_is_one_plain_word(tmp_path, make, run, way):
    done, said = make("train-tiny", *([f"RUN={run}"] if way == "argument" else []),
                      **({"RUN": run} if way == "environment" else {}))
    assert done.returncode == 2 and "RUN=" in done.stderr and done.stderr.count("\n") == 1
    assert not said and not (tmp_path / "pwned").exists()


def test_clean_removes_what_it_is_told_to_and_nothing_else(tmp_path, make):
    for name in ("runs/tiny", "runs/a", "a b", "a", "b", "-x"):
        (tmp_path / name).mkdir(parents=True)
    for given, left in (([], {"a", "b", "a b", "-x", "runs/a"}), (["CLEAN=a b"], {"a", "b", "-x", "runs/a"}),
                        (["CLEAN=-x"], {"a", "b", "runs/a"}), (["CLEAN=$(touch pwned)`touch pwned`"],
                                                             {"a", "b", "runs/a"}),
                        (["CLEAN="], {"a", "b", "runs/a"}), (["CLEAN=runs"], {"a", "b"})):
        assert make("clean", *given)[0].returncode == 0
        assert {name for name in ("runs/tiny", "runs/a", "a b", "a", "b", "-x")
                if (tmp_path / name).exists()} == left
    assert not (tmp_path / "pwned").exists()


def test_new_tokens_remove_nothing_by_themselves(tmp_path, make):
    make("train-tiny")
    kept = tmp_path / "runs" / "tiny" / "checkpoints" / "step-00000001" / "config.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    os.utime(tmp_path / "runs" / "tiny" / "raw.jsonl")  # as after a copy: newer, and the same
    _, said = make("train-tiny")
    assert [line.split("]")[1][1:] for line in said] == [
        f"nanoseek.{stage}" for stage in ("curate", "tokenizer", "data", "train", "evaluate")]
    assert "[--resume][--restart_on_new_data]" in said[3] and kept.exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "many", "", "0.0", "1.2.3", "$(touch pwned)", "nan"])
def test_minutes_that_are_none_are_refused_before_all_else(tmp_path, make, minutes):
    done, said = make("train-tiny", "TEXT=a.txt", f"MINUTES={minutes}")
    assert done.returncode == 2 and "give a number above 0" in done.stderr and not said
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("minutes", ["0.5", "10"])
def test_minutes_reach_training(tmp_path, make, minutes):
    assert f"[--minutes={minutes}]" in make("train-tiny", "TEXT=a.txt", f"MINUTES={minutes}")[1][4]


@pytest.mark.parametrize("name, test", [("my_model.py", "tests/test_model.py"), ("a b/stories.py", "tests/corpus/test_stories.py"),
                                        ("$(touch pwned)`touch pwned` cost.py", "tests/test_cost.py"), ("notes.txt", None),
                                        ("", None)])
def test_a_copy_is_graded_by_the_tests_of_its_module(tmp_path, make, name, test):
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("*[!y]", "__pycache__"))
    (tmp_path / ".venv" / "tests-installed").touch()
    done, said = make("grade", f"FILE={name}")
    assert said == ([f"[-m][pytest][-q][{test}][--module={name}]"] if test else [])
    assert done.returncode == (0 if test else 2) and ("make grade FILE=" in done.stderr) == (not test)
    assert not (tmp_path / "pwned").exists()


# make test ---------------------------------------------------------------------------------------

def test_every_test_file_is_in_one_half_and_the_halves_take_about_as_long():
    files = [path.relative_to(ROOT / "tests").as_posix()
             for path in (ROOT / "tests").rglob("test_*.py")]
    assert {*halves.SECONDS} <= {*files}
    shares = halves.halves(files)
    assert sorted(sum(shares, [])) == sorted(files)
    took = [sum(halves.SECONDS.get(file, halves.OTHERS) for file in share) for share in shares]
    assert max(took) < 1.1 * min(took)


PASSES, FAILS, NEVER_ENDS = ("def test_a(): assert {}".format(code) for code in (
    "True", "False", "__import__('time').sleep(600)"))


@pytest.fixture
def run_halves(tmp_path):
    """Return start(*contents): the script with these test files, as a process."""
    def start(*contents):
        shutil.copy(halves.__file__, tmp_path)
        for number, content in enumerate(contents):
            (tmp_path / f"test_{number}.py").write_text(content)
        return subprocess.Popen([sys.executable, tmp_path / "halves.py"], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return start


@pytest.mark.parametrize("contents, code, last", [
    ([PASSES, PASSES], 0, "tests: both halves passed"),
    ([FAILS, PASSES], 1, "tests: failures in the first half, see above"),
    ([PASSES, FAILS], 1, "tests: failures in the second half, see above")])
def test_a_failure_in_either_half_fails_both(run_halves, contents, code, last):
    process = run_halves(*contents)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code and said.splitlines()[-1] == last
    assert len(re.findall(r"(?m)^1 (passed|failed)\b.* in ", said)) == 2


def test_ctrl_c_ends_both_halves(run_halves):
    process = run_halves(NEVER_ENDS, NEVER_ENDS)
    halves_of = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(children := halves_of.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "tests: stopped"
    assert process.returncode == 130
    assert not any(pathlib.Path(f"/proc/{child}").exists() for child in children)
