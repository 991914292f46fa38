"""Copy the notebooks without their outputs, so that no answer stands under a question.

    python tutorials/blank.py runs/lab      # what stands there already is left as it is
"""

import pathlib
import sys

import nbformat


def blank(source, folder):
    """Copy each notebook of a folder into another; return the names of the new copies."""
    made = []
    for path in sorted(source.rglob("[0-9]*.ipynb")):
        copy = folder / path.relative_to(source)
        if not copy.exists():  # else a student is at work in it
            notebook = nbformat.read(path, 4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            copy.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, copy)
            made.append(copy.name)
    return made


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    made = blank(pathlib.Path(__file__).parent, folder)
    print(f"{folder}: {len(made)} new copies; to begin one anew, remove it and run this again")
