"""Execute the notebooks, then their exercises solved: each is open before, and right after.

    python tutorials/solutions/check.py [FOLDER [NOTEBOOK …]]    # say 01_tokenizer; without: all
                                           # the executed copies go to FOLDER, or runs/tutorials

An exercise is a cell with a line `# check`. What stands above it is the reader's to write. What
follows prints "not done yet" while nothing was tried, fails for a wrong answer, and prints "right".
Here the part of the solutions file with the same number takes the place of what stands above.
"""

import concurrent.futures
import os
import pathlib
import re
import sys
import time

HERE = pathlib.Path(__file__).parent
CHECK = "# check\n"


def state(cell):
    """Return what an executed exercise says: "open", "right", or the name of its error."""
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    error = next((o.ename for o in cell.outputs if o.output_type == "error"), None)
    last = printed.rstrip().rpartition("\n")[2]
    said = next((word for word in ("not done yet", "right") if last.startswith(word)), "nothing")
    return error or {"not done yet": "open"}.get(said, said)


def check(solutions, folder):
    """Return (whether a notebook and its solutions are as they should be, what to say of it)."""
    import nbformat  # here, as `state` needs neither package
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    began, name = time.monotonic(), f"{solutions.stem}.ipynb"
    notebook = nbformat.read(HERE.parent / name, 4)
    exercises = [cell for cell in notebook.cells
                 if cell.cell_type == "code" and CHECK in cell.source]
    solved = re.split(r"(?m)^# \d+\. .*\n", solutions.read_text("utf-8"))[1:]
    if len(solved) != len(exercises):
        return False, (f"{len(solved)} solutions for {len(exercises)} exercises, each of which "
                       f"needs the line {CHECK.strip()!r}")
    client = NotebookClient(notebook, resources={"metadata": {"path": HERE.parent}})
    try:
        with client.setup_kernel():
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
            before, whole = [state(cell) for cell in exercises], time.monotonic() - began
            nbformat.write(notebook, folder / name)
            for cell, solution in zip(exercises, solved):  # as a reader goes on, in the same kernel
                cell.source = solution + CHECK + cell.source.split(CHECK)[1]
                client.execute_cell(cell, notebook.cells.index(cell))
    except CellExecutionError as error:
        return False, str(error)
    after = [state(cell) for cell in exercises]
    good = set(before) == {"open"} and set(after) == {"right"}
    return good, f"{whole:.0f} s, unsolved {before}, solved {after}"


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "runs/tutorials"
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = {path.stem for path in HERE.parent.glob("*.ipynb")}
    found = sorted(HERE.glob("[0-9]*.py"))
    if notebooks != {path.stem for path in found}:
        sys.exit("a notebook without solutions, or solutions without a notebook: "
                 f"{notebooks ^ {path.stem for path in found}}")
    if unknown := {*sys.argv[2:]} - notebooks:
        sys.exit(f"no notebook {', '.join(unknown)}: name some of {', '.join(sorted(notebooks))}")
    found = [path for path in found if path.stem in (sys.argv[2:] or notebooks)]
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
