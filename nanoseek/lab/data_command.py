"""The command `python -m nanoseek.data`: documents and their tokenizer → token shards.

    python -m nanoseek.data clean.jsonl tokenizer.json tokens
"""

from nanoseek import cli
from nanoseek.corpus.documents import read_documents, with_progress
from nanoseek.data import write_shards
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.tokenizer import Tokenizer


def main(argv=None):
    parser = cli.Parser("nanoseek.data", "Encode clean documents into token shards.")
    parser.add_argument("clean", help="documents, JSON lines")
    parser.add_argument("tokenizer", help="tokenizer.json")
    parser.add_argument("folder", help="where the shards and manifest.json go")
    cli.add_fast_flag(parser)
    args = parser.parse_args(argv)
    tokenizer = (FastTokenizer if args.fast else Tokenizer).load(args.tokenizer)
    manifest = write_shards(with_progress(read_documents(args.clean)), tokenizer.encode_batch,
                            args.folder, tokenizer.vocab_size, tokenizer.eot_id, args.tokenizer,
                            batched=True)
    for split, sources in manifest["splits"].items():
        for source, entry in sources.items():
            print(f"{split:<9}{source:<16}{entry['documents']:>10,} documents"
                  f"{entry['tokens']:>12,} tokens{entry['bytes']:>12,} bytes")
