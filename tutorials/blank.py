"""Copy the notebooks without their outputs, so that no answer stands under a question.

    python tutorials/blank.py runs/lab      # what stands there already is left as it is
"""

import json
import pathlib
import sys


def blank(source, folder):
    """Copy each notebook of a folder into another; return the names of the new copies."""
    made = []
    for path in sorted(source.rglob("[0-9]*.ipynb")):
        copy = folder / path.relative_to(source)
        if not copy.exists():  # else a student is at work in it
            notebook = json.loads(path.read_text("utf-8"))
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell |= {"outputs": [], "execution_count": None}
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", "utf-8")
            made.append(copy.name)
    return made


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    made = blank(pathlib.Path(__file__).parent, folder)
    print(f"{folder}: {len(made)} new copies; to begin one anew, remove it and run this again")
