"""Put a raw corpus together: gather(CorpusConfig(stories=1000)) → documents."""

import dataclasses

from nanoseek import cli
from nanoseek.corpus.documents import read_documents, write_documents
from nanoseek.corpus.own_text import names_in, read_text
from nanoseek.corpus.python_docs import python_docs
from nanoseek.corpus.stories import LANGUAGES, stories


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What to gather: on the command line either the default corpus or a text of your own."""
    stories: int = cli.setting(40000, "how many stories, half in each language", least=0,
                               most=10_000_000)
    python_docs: bool = cli.setting(True, "add this Python's documentation")
    text: str = cli.setting("", "your own text instead: files, folders, http(s) addresses")
    seed: int = cli.setting(0, "which stories")

    def __post_init__(self):
        cli.check_limits(self)


def gather(config):
    """Return the raw documents that a CorpusConfig asks for."""
    documents = [story._asdict() for n, language in enumerate(LANGUAGES)
                 for story in stories(language, (config.stories + n) // 2, config.seed)]
    documents += python_docs() if config.python_docs else []
    return documents + (read_text(config.text) if config.text else [])


def main(argv=None):
    parser = cli.Parser("nanoseek.corpus", "Gather raw documents.")
    parser.add_argument("output", help="the file to write, such as raw.jsonl")
    cli.add_flags(parser, CorpusConfig)
    args = parser.parse_args(argv)
    if args.text == "":
        raise ValueError("--text is empty: name a file, a folder or an address")
    output = cli.check_output(args.output, *names_in(args.text) if args.text else [])
    held = cli.lock_run_of(args.output)  # until all is written
    base = CorpusConfig(stories=0, python_docs=False) if args.text else CorpusConfig()
    changed, sizes = write_documents(gather(cli.from_flags(base, args)), output), {}
    for document in read_documents(output):
        sizes.setdefault(document["source"], []).append(len(document["text"].encode()))
    for source, found in sizes.items():
        print(f"{source:<24}{len(found):>9,} documents{sum(found) / 1e6:>9.2f} MB")
    print(f"{args.output}: {'written' if changed else 'unchanged'}")
