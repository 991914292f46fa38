"""python -m nanoseek.corpus: see the package."""

from nanoseek.cli import run
from nanoseek.corpus import main

if __name__ == "__main__":
    run(main)
