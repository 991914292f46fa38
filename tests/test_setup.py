"""The set-up script answers an old Python, or a machine without a PyTorch build, in one line."""

import os
import pathlib
import stat
import subprocess

import pytest

SETUP = pathlib.Path(__file__).parent.parent / ".ci" / "setup"

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
