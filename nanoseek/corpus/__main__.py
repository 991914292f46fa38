"""python -m nanoseek.corpus: write the raw corpus as JSON lines."""

from nanoseek import cli
from nanoseek.corpus.gather import main

if __name__ == "__main__":
    cli.run(main)
