"""python -m nanoseek.corpus: write the raw corpus as JSON lines, or print stories."""

import collections
import sys

from nanoseek import cli
from nanoseek.corpus.documents import read_documents, write_documents
from nanoseek.corpus.gather import CorpusConfig, gather
from nanoseek.corpus.stories import LANGUAGES, stories


def main(argv=None):
    """Write the raw corpus, and say what is in it."""
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
    changed = write_documents(gather(cli.from_flags(CorpusConfig, args)), args.output)
    texts, sizes = collections.Counter(), collections.Counter()
    for document in read_documents(args.output):
        texts[document["source"]] += 1
        sizes[document["source"]] += len(document["text"].encode())
    for source in texts:
        print(f"{source:<24}{texts[source]:>9,} documents{sizes[source] / 1e6:>9.2f} MB")
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


if __name__ == "__main__":
    cli.run(main)
