"""Check the exercises: unsolved, every check must fail; with the worked solutions, all must pass.

    python tutorials/solutions/check.py

An exercise is a cell tagged raises-exception. What stands above its line `# check` is the
reader's to write; here the part of the solutions file with the same number takes its place.
"""

import pathlib
import re
import sys

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent
CHECK = "# check\n"


def run(notebook, exercises):
    """Execute a notebook; return the error of each exercise, None where it passed."""
    NotebookClient(notebook, resources={"metadata": {"path": HERE.parent}}).execute()
    return [next((o.ename for o in cell.outputs if o.output_type == "error"), None)
            for cell in exercises]


def main():
    failed = False
    for solutions in sorted(HERE.glob("[0-9]*.py")):
        notebook = nbformat.read(HERE.parent / f"{solutions.stem}.ipynb", 4)
        exercises = [cell for cell in notebook.cells
                     if "raises-exception" in cell.metadata.get("tags", [])]
        solved = re.split(r"(?m)^# \d+\. .*\n", solutions.read_text("utf-8"))[1:]
        if not len(solved) == len(exercises) == sum(CHECK in c.source for c in exercises):
            sys.exit(f"{solutions.name}: {len(solved)} solutions for {len(exercises)} exercises, "
                     f"each of which needs the line {CHECK.strip()!r}")
        before = run(notebook, exercises)
        for cell, solution in zip(exercises, solved):
            cell.source = solution + CHECK + cell.source.split(CHECK)[1]
        after = run(notebook, exercises)
        print(f"{solutions.stem}: unsolved {before}, solved {after}")
        failed |= set(before) != {"AssertionError"} or set(after) != {None}
    sys.exit(failed)


if __name__ == "__main__":
    main()
