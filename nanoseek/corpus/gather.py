"""Put a raw corpus together: gather(CorpusConfig(stories=1000, dirt=0.3)) → documents."""

import collections
import dataclasses
import sys

from nanoseek import cli
from nanoseek.corpus.dirt import plant_dirt
from nanoseek.corpus.documents import read_documents, write_documents
from nanoseek.corpus.own_text import read_text
from nanoseek.corpus.python_docs import python_docs
from nanoseek.corpus.stories import LANGUAGES, stories


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What to gather; without a text of your own, the default corpus."""
    stories: int = cli.setting(
        None, "how many stories, half in each language; 40000 unless --text", least=0)
    python_docs: bool = cli.setting(None, "add this Python's documentation; true unless --text")
    text: str = cli.setting("", "a text file, folder, .jsonl or http(s) address of your own")
    dirt: float = cli.setting(0.0, "share of dirty documents to plant", least=0, below=1)
    seed: int = cli.setting(0, "which stories, and which dirt")

    def __post_init__(self):
        cli.check_limits(self)


def gather(config):
    """Return the raw documents that a CorpusConfig asks for."""
    default = not config.text
    docs = default if config.python_docs is None else config.python_docs
    count = config.stories if config.stories is not None else 40000 * default
    documents = [story._asdict() for language, share in zip(LANGUAGES, (count // 2, -(-count // 2)))
                 for story in stories(language, share, config.seed)]
    if docs:
        documents += python_docs()
    if config.text:
        documents += read_text(config.text)
    return plant_dirt(documents, config.seed, config.dirt)[0] if config.dirt else documents


def main(argv=None):
    """Write the raw corpus, and say what is in it."""
    from nanoseek.scale.lock import lock_run_of
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["stories"]:
        return print_stories(argv[1:])
    parser = cli.Parser("nanoseek.corpus", "Gather raw documents into one file of JSON lines "
                        "(or print stories: python -m nanoseek.corpus stories --help).")
    parser.add_argument("output", help="the file to write, such as raw.jsonl")
    cli.add_flags(parser, CorpusConfig)
    args = parser.parse_args(argv)
    if args.text == "":
        raise ValueError("--text is empty: name a file, a folder or an address")
    cli.check_output(args.output, *[args.text] if args.text else [])
    held = lock_run_of(args.output)  # until all is written
    changed = write_documents(gather(cli.from_flags(CorpusConfig, args)), args.output)
    sizes = collections.defaultdict(list)
    for document in read_documents(args.output):
        sizes[document["source"]].append(len(document["text"].encode()))
    for source, found in sizes.items():
        print(f"{source:<24}{len(found):>9,} documents{sum(found) / 1e6:>9.2f} MB")
    print(f"{args.output}: {'written' if changed else 'unchanged'}")


def print_stories(argv):
    """Print stories and their bits."""
    parser = cli.Parser("nanoseek.corpus stories", "Print stories of the bilingual grammar.")
    parser.add_argument("--language", default="en", choices=LANGUAGES, help="en or zh")
    parser.add_argument("--count", type=int, default=5, help="how many stories")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other stories")
    args = parser.parse_args(argv)
    for story in stories(args.language, args.count, args.seed):
        print(f"{story.text}\n    {story.log2_probability:.1f} bits\n")
