"""Execute the notebooks, unsolved and solved: each exercise must fail before and pass after.

    python tutorials/solutions/check.py [FOLDER]      # the executed copies go to runs/tutorials

An exercise is a cell tagged raises-exception. What stands above its line `# check` is the
reader's to write; here the part of the solutions file with the same number takes its place.
"""

import concurrent.futures
import os
import pathlib
import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = pathlib.Path(__file__).parent
CHECK = "# check\n"


def run(notebook, exercises):
    """Execute a notebook; return the error of each exercise, None where it passed."""
    NotebookClient(notebook, resources={"metadata": {"path": HERE.parent}}).execute()
    return [next((o.ename for o in cell.outputs if o.output_type == "error"), None)
            for cell in exercises]


def check(solutions, folder):
    """Return (whether a notebook and its solutions are as they should be, what to say of it)."""
    began, name = time.monotonic(), f"{solutions.stem}.ipynb"
    notebook = nbformat.read(HERE.parent / name, 4)
    exercises = [cell for cell in notebook.cells
                 if "raises-exception" in cell.metadata.get("tags", [])]
    solved = re.split(r"(?m)^# \d+\. .*\n", solutions.read_text("utf-8"))[1:]
    if not len(solved) == len(exercises) == sum(CHECK in c.source for c in exercises):
        return False, (f"{len(solved)} solutions for {len(exercises)} exercises, each of which "
                       f"needs the line {CHECK.strip()!r}")
    try:
        before = run(notebook, exercises)
        nbformat.write(notebook, folder / name)
        for cell, solution in zip(exercises, solved):
            cell.source = solution + CHECK + cell.source.split(CHECK)[1]
        after = run(notebook, exercises)
    except CellExecutionError as error:
        return False, str(error)
    good = set(before) == {"AssertionError"} and set(after) == {None}
    return good, (f"unsolved {before}, solved {after}; both executions took "
                  f"{time.monotonic() - began:.0f} s")


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "runs/tutorials"
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = {path.stem for path in HERE.parent.glob("*.ipynb")}
    found = sorted(HERE.glob("[0-9]*.py"))
    if notebooks != {path.stem for path in found}:
        sys.exit("a notebook without solutions, or solutions without a notebook: "
                 f"{notebooks ^ {path.stem for path in found}}")
    os.environ["OMP_NUM_THREADS"] = "1"  # one core each: two that share all cores crawl
    with concurrent.futures.ProcessPoolExecutor(min(len(found), os.cpu_count())) as workers:
        tasks = {workers.submit(check, path, folder): path.stem for path in found}
        results = []
        for task in concurrent.futures.as_completed(tasks):
            results.append(task.result())
            print(f"{tasks[task]}: {results[-1][1]}", flush=True)
    sys.exit(not all(good for good, _ in results))


if __name__ == "__main__":
    main()
