"""The commands of three stages: raw documents → clean ones → a tokenizer → token shards.

    python -m nanoseek.curate raw.jsonl clean.jsonl                  # and curation.json beside it
    python -m nanoseek.tokenizer train clean.jsonl tokenizer.json --vocab_size 4096
    python -m nanoseek.data clean.jsonl tokenizer.json tokens"""

import json
import pathlib
import warnings

from nanoseek import cli, duplicates
from nanoseek.corpus.documents import read_documents, write_documents
from nanoseek.curate import CurateConfig, curate
from nanoseek.fast import pairs
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.scale.sizing import vocabulary
from nanoseek.tokenizer import Tokenizer


def clean(argv=None):
    """Curate a file of JSON lines into another, with curation.json beside it."""
    parser = cli.Parser("nanoseek.curate", "Clean raw documents and hold some of them out.")
    parser.add_argument("input", help="raw documents, JSON lines")
    parser.add_argument("output", type=pathlib.Path, help="the file to write, such as clean.jsonl")
    cli.add_flags(parser, CurateConfig)
    cli.add_fast_flag(parser)
    args = parser.parse_args(argv)
    output = cli.check_output(args.output, args.input)
    report_file = args.output.with_name("curation.json")
    cli.check_output(report_file, args.input, args.output)
    held = cli.lock_run_of(args.output)  # until all is written
    kept, report = curate(read_documents(args.input), cli.from_flags(CurateConfig, args),
                          (pairs if args.fast else duplicates).find_near_duplicates)
    output.parent.mkdir(parents=True, exist_ok=True)
    with cli.writing(report_file) as new:
        new.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_documents(kept, output)  # last: for make, a stage that was killed is not done
    output.touch()  # for make: newer than its input, even where nothing changed
    print(curation_table(report))


def curation_table(report):
    """Return the report as lines for the screen: in, what went and why, out, with bars by bytes."""
    total, *out = report["totals"].items()
    rows = [total, *((f"- {name}", entry) for name, entry in report["removed"].items()),
            *((f"~ {name}, cut", entry) for name, entry in report["cut"].items()), *out]
    scale = 20 / max(1, total[1]["bytes"])
    return "\n".join(f"{name:<42}{entry['documents']:>10,} documents"
                     f"{entry['bytes'] / 1e6:>9.2f} MB {'#' * round(scale * entry['bytes'])}"
                     for name, entry in rows)


def learn_tokenizer(argv=None):
    """Documents → tokenizer.json."""
    parser = cli.Parser("nanoseek.tokenizer", "Learn a tokenizer from documents not held out.")
    parser.add_argument("command", choices=["train"])
    parser.add_argument("documents", help="JSON lines of {text, source, split}")
    parser.add_argument("tokenizer", help="the tokenizer.json to write")
    parser.add_argument("--vocab_size", type=int, default=0,
                        help="ids in all (default 0: sized to the text)")
    parser.add_argument("--max_token_length", type=int, help="of a token, in bytes")
    cli.add_fast_flag(parser)
    args = parser.parse_args(argv)
    output = cli.check_output(args.tokenizer, args.documents)
    held = cli.lock_run_of(args.tokenizer)  # until all is written
    texts = (d["text"] for d in read_documents(args.documents) if d.get("split") != "held_out")
    if not (size := args.vocab_size):
        texts = [*texts]
        size = vocabulary(sum(len(text.encode()) for text in texts))
    warnings.formatwarning = lambda message, *_: f"{message}\n"
    tokenizer = (FastTokenizer if args.fast else Tokenizer).train(
        texts, size, progress=cli.say, max_token_length=args.max_token_length)
    with cli.writing(output) as new:
        tokenizer.save(new)
    print(f"{args.tokenizer}: {tokenizer.vocab_size:,} ids")


def encode(argv=None):
    """Encode documents into token shards."""
    from nanoseek.data import write_shards  # it imports torch, which the others need not wait for
    parser = cli.Parser("nanoseek.data", "Encode clean documents into token shards.")
    parser.add_argument("clean", help="documents, JSON lines")
    parser.add_argument("tokenizer", help="tokenizer.json")
    parser.add_argument("folder", help="where the shards and manifest.json go")
    cli.add_fast_flag(parser)
    args = parser.parse_args(argv)
    held = cli.lock_run_of(args.folder)  # until all is written
    tokenizer = (FastTokenizer if args.fast else Tokenizer).load(args.tokenizer)
    cli.say(f"encoding {args.clean}")
    manifest = write_shards(read_documents(args.clean), tokenizer.encode_batch, args.folder,
                            tokenizer.vocab_size, tokenizer.eot_id, args.tokenizer, batched=True)
    for split, sources in manifest["splits"].items():
        for source, entry in sources.items():
            print(f"{split:<9}{source:<16}{entry['documents']:>10,} documents"
                  f"{entry['tokens']:>12,} tokens{entry['bytes']:>12,} bytes")
