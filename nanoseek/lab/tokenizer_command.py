"""The command `python -m nanoseek.tokenizer train`: documents → tokenizer.json.

    python -m nanoseek.tokenizer train clean.jsonl tokenizer.json --vocab_size 4096
"""

import sys
import warnings

import regex

from nanoseek import cli
from nanoseek.corpus import read_documents, read_text
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.lab.foreign_tokenizer import READ_OTHERWISE
from nanoseek.tokenizer import DEFAULT_PATTERN, Tokenizer


def check_pattern(pattern):
    """Raise ValueError for a pattern that is none, or that has another meaning in `tokenizers`."""
    odd = regex.search(READ_OTHERWISE, pattern)
    if odd:
        raise ValueError(f"the split pattern uses {odd[0]}, which tokenizers reads otherwise")
    try:
        regex.compile(pattern, regex.V1)
    except regex.error as error:
        raise ValueError(f"the split pattern {pattern!r} does not compile: {error}") from None


def main(argv=None):
    parser = cli.Parser("nanoseek.tokenizer", "Learn a tokenizer from documents not held out.")
    parser.add_argument("command", choices=["train"])
    parser.add_argument("documents", help="a .jsonl of {text, source, split}, a text, or a folder")
    parser.add_argument("tokenizer", help="the tokenizer.json to write")
    parser.add_argument("--vocab_size", type=int, default=2048, help="ids in all (default 2048)")
    parser.add_argument("--max_token_length", type=int, help="of a token, in bytes")
    parser.add_argument("--pattern", nargs="+", default=[DEFAULT_PATTERN],
                        help="how to cut text into chunks; several run one after another")
    cli.add_fast_flag(parser)
    args = parser.parse_args(argv)
    cli.check_output(args.tokenizer, args.documents)
    if not args.tokenizer.endswith(".json"):  # documents .jsonl: were the two swapped?
        raise ValueError(f"{args.tokenizer}: give the tokenizer to write a name in .json")
    for pattern in args.pattern:
        check_pattern(pattern)
    read = read_documents if args.documents.endswith(".jsonl") else read_text
    texts = (d["text"] for d in read(args.documents) if d.get("split") != "held_out")
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    tokenizer = (FastTokenizer if args.fast else Tokenizer).train(
        texts, args.vocab_size, pattern=args.pattern, progress=cli.say,
        max_token_length=args.max_token_length)
    with cli.writing(args.tokenizer) as new:
        tokenizer.save(new)
    print(f"{args.tokenizer}: {tokenizer.vocab_size:,} ids")
