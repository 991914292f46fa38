"""Is a source that is hard to predict learnt, though its losses lie far above the usual?

    python tests/bench/hard_source.py    # a minute or two

19 of 20 rows are English stories. The others are subwords drawn at random, each with the space before
it one token, so that their entropy is known. A step sees one row, as the step of a large model on
one GPU does, and every twentieth loss leaps.
"""

import math
import pathlib
import random
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.corpus.stories import stories
from nanoseek.data import write_shards
from nanoseek.evaluate import evaluate
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.model import ModelConfig
from nanoseek.train import TrainConfig, train

WEIGHTS = {"stories": 0.95, "subwords": 0.05}
SHAPE = {"hidden_size": 64, "intermediate_size": 176, "max_position_embeddings": 128}


def write_tokens(folder):
    """Write both sources' tokens; return the entropy of the hard one in bits per byte."""
    texts = [story.text for story in stories("en", 4000, seed=1)]
    tokenizer = FastTokenizer.train(texts, 1024)
    tokenizer.save(folder / "tokenizer.json")
    words = [token.decode() for token in tokenizer.tokens.values()
             if token[:1] == b" " and token[1:].isalpha()]
    draw = random.Random(0)
    hard = ["".join(draw.choices(words, k=200)) for _ in range(1000)]
    documents = [{"text": text, "source": source, "split": "train" if n % 40 else "held_out"}
                 for source, texts in zip(WEIGHTS, (texts, hard)) for n, text in enumerate(texts)]
    write_shards(documents, tokenizer.encode_batch, folder / "tokens", tokenizer.vocab_size,
                 tokenizer.eot_id, folder / "tokenizer.json", batched=True)
    return math.log2(len(words)) / (sum(map(len, words)) / len(words))


def main():
    with tempfile.TemporaryDirectory() as folder:
        entropy = write_tokens(folder := pathlib.Path(folder))
        run = train(TrainConfig(
            out=str(folder), steps=2000, batch_size=1, row_length=128,
            weights=",".join(f"{name}={share}" for name, share in WEIGHTS.items()),
            device="cpu", precision="fp32", threads=1, eval_every=500, save_every=10 ** 6,
            model=ModelConfig(1024, **SHAPE)))
        skipped = [row["step"] for row in run.log if "skipped" in row]
        print(f"{len(skipped)} of {run.step} steps skipped; the first: {skipped[:5]}")
        for source, score in evaluate(run.model.eval(), folder / "tokens").items():
            print(f"{source:<10}{score.bits_per_byte:6.3f} bits per byte, "
                  f"unigram {score.unigram:.3f}")
        print(f"the subwords' entropy is {entropy:.3f} bits per byte")


if __name__ == "__main__":
    main()
