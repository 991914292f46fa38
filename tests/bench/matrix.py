"""Do the chapters that stand alone work with older and newer surroundings? Print a table.

    python tests/bench/matrix.py                 # each torch with the oldest and the newest Python
    python tests/bench/matrix.py --torch 2.4.1 --python 11     # only these
    PIP_ARGS="--index-url …" python tests/bench/matrix.py      # torch without libraries for a GPU

For each pair of a torch and a Python of this machine, a throwaway virtual environment is made and
removed again. In it each module of tutorials/COPYING_OUT.md is copied out alone: its lines there
must print what the page says (ok), and the tests marked `contract` must pass on the copy (12/12).
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PINNED = re.search(r"torch==(\S+)", (ROOT / "requirements.txt").read_text())[1]
# torch → the minor versions of Python 3 that it has wheels for.
TORCHES = {"2.4.1": range(8, 13), "2.6.0": range(9, 14), "2.9.0": range(10, 15),
           PINNED: range(10, 15)}
MORE = ["regex", "safetensors", "pytest", "hypothesis", "tokenizers", "tiktoken"]
PAGE = (ROOT / "tutorials" / "COPYING_OUT.md").read_text("utf-8")
ALONE = dict(re.findall(r"(?ms)^## (\w+)\.py\n(.*?)(?=^## |\Z)", PAGE))


def pythons():
    """Return {minor version: path} of the Pythons here, from 3.10 on."""
    found = {}
    for minor in range(10, 20):
        here = sorted(pathlib.Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        if path := here[-1] if here else shutil.which(f"python3.{minor}"):
            found[minor] = str(path)
    return found


def run(command, cwd, limit):
    """Return (code, output) of a command; code None where it took longer than the limit."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    try:
        done = subprocess.run(command, cwd=cwd, env=env, timeout=limit, text=True,
                              encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        return None, "took too long"


def try_module(python, name, folder):
    """Copy a module out alone; return what its page's lines and its contract tests say."""
    beside = re.search(r"Beside it: (.*?)\.\n", ALONE[name])
    for file in [f"{name}.py", *re.findall(r"`(.+?)`", beside[1] if beside else "")]:
        (path,) = (ROOT / "nanoseek").rglob(file)
        shutil.copy(path, folder)
    (code,) = re.findall(r"(?s)```python\n(.*?)```", ALONE[name])
    _, said = run([python, "-c", code], folder, 600)
    right = said.splitlines()[-1:] == re.findall(r"print\(.*\)  # (.*)", code)
    (test,) = (ROOT / "tests").rglob(f"test_{name}.py")
    _, graded = run([python, "-m", "pytest", "-q", str(test), "--module",
                     str(folder / f"{name}.py"), "-p", "no:cacheprovider"], ROOT, 900)
    passed = re.findall(r"(\d+) of (\d+) contract tests pass", graded)
    if not right or not passed or passed[0][0] != passed[0][1]:
        print(f"--- {name}\n{said[-300:]}\n{graded[-1500:]}", file=sys.stderr)
    return f"{'ok' if right else 'FAILS'} {'/'.join(passed[0]) if passed else 'no tests'}"


def try_pair(python, torch, numpy, limit):
    """Return a row of the table for one environment, which is made and removed."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run([python, "-m", "venv", "venv"], folder, 600)
        inside = str(folder / "venv" / "bin" / "python")
        code, said = run([inside, "-m", "pip", "install", "-q", *os.environ.get(
            "PIP_ARGS", "").split(), f"torch=={torch}", numpy, *MORE], folder, limit)
        if code:
            return [said.strip().splitlines()[-1][:60]]
        if code is None:
            return [f"not installed within {limit} s"]
        results = []
        for name in ALONE:
            (folder / name).mkdir()
            results.append(try_module(inside, name, folder / name))
        return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", action="append", help="only this version; may be repeated")
    parser.add_argument("--python", type=int, action="append", help="only Python 3.N; as well")
    parser.add_argument("--limit", type=int, default=300, help="seconds for an installation")
    args = parser.parse_args()
    here = pythons()
    print(f"| Python | torch | numpy | {' | '.join(ALONE)} |\n|{'---|' * (3 + len(ALONE))}")
    for torch in args.torch or TORCHES:
        fitting = [minor for minor in here if minor in TORCHES.get(torch, here)]
        for minor in args.python or sorted({*fitting[:1], *fitting[-1:]}):
            # 1.26, the oldest that nanoseek takes, with the oldest Python; it has no wheel for 3.13.
            old = minor < 13 and (args.python or minor == fitting[0])
            numpy = "numpy==1.26.4" if old else "numpy"
            row = try_pair(here[minor], torch, numpy, args.limit)
            print(f"| 3.{minor} | {torch} | {numpy[7:] or 'newest'} | {' | '.join(row)} |",
                  flush=True)


if __name__ == "__main__":
    main()
