"""The laptop record: how low bits per byte go on a text in so many seconds of training.

    python tests/bench/laptop_record.py TEXT --seconds 4 [--seed 0] [--seeds 5]
    python tests/bench/laptop_record.py TEXT --baseline       # nanoGPT's laptop recipe
    python tests/bench/laptop_record.py TEXT --table          # both, and the records: minutes

The first 90% of the characters are trained on; the rest is held out and looked at only once, when
the model is finished. The clock covers all that is done for this text: training the tokenizer and
encoding with it, choosing the precision, making the model, every step. Reading the file, imports
and scoring are outside. The schedule follows the clock: its progress is the share of the seconds
that have passed, so it ends on time on a slow machine too; two runs of one seed differ slightly.

The score is the negative log2-likelihood of all held-out bytes over their number. The held-out
text is encoded as a whole, and every token but the first is predicted once, in a window of tokens
that begins so that the last byte of each predicted token has at most 256 bytes before it; the first
token is charged as drawn evenly from all. Tokens that begin within STRIDE bytes share a window,
so each has nearly all of those 256 bytes. The baseline, whose context is 64 characters, is
scored by the same code, a byte a token, with at most 63 bytes before each.
"""

import dataclasses
import math
import os
import pathlib
import statistics
import sys
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch._dynamo  # the first optimizer would import it, for a second of the clock
import torch.nn.functional as F
from torch import nn

from nanoseek.cli import Parser, run
from nanoseek.evaluate import piece_nats, windows
from nanoseek.fast import speed_up
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.fast.onednn import use_exact_onednn
from nanoseek.model import ModelConfig, Transformer, loss
from nanoseek.optim import build_optimizers, set_learning_rate
from nanoseek.scale.machine import autocast

CONTEXT, STRIDE = 256, 16  # bytes: before a scored byte, at most; scored in one window
LEAST_TEXT, LEAST_STEPS = 100_000, 10  # characters; with fewer there is nothing to measure
LONGEST_TOKEN = 16  # bytes: longer ones are rare in prose, and a window must hold several
# Large buffers stay with the process (glibc), as the Makefile has it.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


# --- the score ---------------------------------------------------------------------------------

def byte_windows(sizes, context=CONTEXT, stride=STRIDE):
    """Return [(begin, first, end)]: ids first … end - 1 are predicted from begin on.

    sizes (n,): the bytes of each id. Every id but number 0 is predicted once; the last byte of
    each has at most `context` bytes before it in its window. No id may be longer than that.
    """
    ends = np.cumsum(sizes)
    starts, found, first = ends - sizes, [], 1
    while first < len(sizes):
        end = int(np.searchsorted(starts, starts[first] + stride))
        begin = int(np.searchsorted(starts, ends[end - 1] - context - 1))
        found.append((begin, first, end))
        first = end
    return found


def bits_per_byte(model, ids, sizes, pieces, extra=0.0):
    """Return bits per byte of ids in pieces (ids, skip); extra: the bits of what no piece holds."""
    model.eval()
    return (piece_nats(model, pieces).sum() / math.log(2) + extra) / sizes.sum()


def score(model, ids, sizes, first_bits, context=CONTEXT):
    """Return the bits per byte of ids (n,) of these sizes (n,); first_bits: of ids[0]."""
    pieces = [(ids[begin:end], first - begin - 1)
              for begin, first, end in byte_windows(sizes, context)]
    return bits_per_byte(model, ids, sizes, pieces, first_bits)


# --- the record's recipe -----------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how. Rates are peaks; shares are of the seconds."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    rows: int
    row_length: int
    learning_rate: float = 0.02
    embedding_factor: float = 2.0
    weight_decay: float = 0.1
    warmup: float = 0.03


# Found by trial on a megabyte of English, judged by its held-out tenth: on another text they may do
# less well. In few seconds every step counts: the smallest model and a larger vocabulary, whose
# tokens are longer. In a minute the text is read several times: 1024 tokens overfit it more than
# 512; 192 wide takes too few steps, 128 wide gains little from more.
SHORT = Recipe(vocab_size=1024, width=96, layers=1, heads=3, rows=16, row_length=64)
LONG = Recipe(vocab_size=512, width=160, layers=3, heads=4, rows=16, row_length=128,
              learning_rate=0.01, embedding_factor=3.0)
SHORT_BELOW = 10  # seconds: recipes for the time between were not sought


def build(recipe, vocab_size):
    """Return nanoseek's model for a recipe; each layer begins as if it were not there."""
    width = recipe.width
    model = Transformer(ModelConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads, max_position_embeddings=max(CONTEXT, recipe.row_length),
        initializer_range=0.05))
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return speed_up(model)


class Rows:
    """Rows of a text (ids), each part once in an epoch, cut at other places in each."""

    def __init__(self, ids, seed, rows, length):
        self.ids, self.random = torch.from_numpy(ids), np.random.default_rng(seed)
        self.rows, self.length, self.left = rows, length, np.empty(0, np.int64)

    def take(self):
        """Return inputs and targets, each (rows, length)."""
        if len(self.left) < self.rows:
            start = int(self.random.integers(self.length))
            count = (len(self.ids) - 1 - start) // self.length
            self.left = self.random.permutation(count) * self.length + start
        at, self.left = torch.from_numpy(self.left[:self.rows, None]), self.left[self.rows:]
        ids = self.ids[at + torch.arange(self.length + 1)]
        return ids[:, :-1], ids[:, 1:]


def faster_precision():
    """Return bf16 where a product is clearly faster in it, else fp32: some milliseconds' trial."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16) * 4:
        x, began = torch.ones(512, 512, dtype=dtype), time.perf_counter()
        x @ x
        best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - began)
    return "bf16" if best[torch.bfloat16] * 1.3 < best[torch.float32] else "fp32"


def train_record(text, recipe, seconds, seed):
    """Train on a text for so many seconds; return (model, tokenizer, seconds taken, steps,
    precision)."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    use_exact_onednn()
    precision = faster_precision()
    with warnings.catch_warnings():  # of a text too uniform for so many merges
        warnings.simplefilter("ignore")
        tokenizer = FastTokenizer.train([text], recipe.vocab_size, special_tokens=(),
                                        max_token_length=LONGEST_TOKEN)
    rows = Rows(tokenizer.encode_batch([text])[0].astype(np.int64), seed, recipe.rows,
                recipe.row_length)
    model = build(recipe, tokenizer.vocab_size)
    optimizers = build_optimizers(model, "muon", recipe.learning_rate, recipe.weight_decay,
                                  recipe.embedding_factor)
    steps = step_seconds = 0
    while (passed := time.perf_counter() - began) + step_seconds / 2 < seconds:
        done = passed / seconds
        set_learning_rate(optimizers, recipe.learning_rate * min(
            done / recipe.warmup, (1 - done) / (1 - recipe.warmup)))
        # The first gradients tell little of later ones: they are forgotten sooner.
        optimizers[0].param_groups[0]["momentum"] = 0.85 + 0.1 * min(1, steps / 100)
        inputs, targets = rows.take()
        with autocast(torch.device("cpu"), precision):
            value = loss(model, inputs, targets)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        steps, step_seconds = steps + 1, time.perf_counter() - began - passed
    return model, tokenizer, time.perf_counter() - began, steps, precision


def record(train, held_out, seconds, seed):
    """Train for so many seconds, print a line, and return the bits per byte of the held-out text.

    Raises ValueError when hardly a step fits in.
    """
    recipe = SHORT if seconds < SHORT_BELOW else LONG
    model, tokenizer, taken, steps, precision = train_record(train, recipe, seconds, seed)
    if steps < LEAST_STEPS:
        raise ValueError(f"{steps} steps fit into {seconds:g} seconds: give more")
    ids = tokenizer.encode_batch([held_out])[0].astype(np.int64)
    sizes = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])[ids]
    first = math.log2(tokenizer.vocab_size)
    found = score(model, ids, sizes, first)
    whole = bits_per_byte(model, ids, sizes, list(windows(
        ids, recipe.row_length, recipe.row_length // 8)), first)
    print(f"seed {seed}: {found:.4f} bits/byte after {taken:.2f} s; {steps} steps, vocabulary "
          f"{tokenizer.vocab_size}, {recipe.layers} layers x {recipe.width}, {precision}; with "
          f"{recipe.row_length} tokens of context {whole:.4f}", flush=True)
    return found


# --- the baseline: nanoGPT's laptop recipe -----------------------------------------------------

class Block(nn.Module):
    """GPT-2's block without biases (Radford et al. 2019, §2.3)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Baseline(nn.Module):
    """A small GPT-2 over characters: 4 layers, 4 heads, 128 wide, 64 learned positions, tied."""

    def __init__(self, vocab_size, width=128, layers=4, heads=4, context=64):
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # what is added to the residual stream begins smaller (GPT-2 §2.3)
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers if adds else 1))
        self.lm_head.weight = self.tokens.weight

    def hidden(self, ids):
        return self.norm(self.blocks(self.tokens(ids) + self.positions.weight[:ids.shape[1]]))


def train_baseline(ids, vocab_size, steps, seed, rows=12, warmup=100, peak=1e-3):
    """Train on ids (n,) int64 at random places; return (model, seconds taken)."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    model, ids = Baseline(vocab_size), torch.from_numpy(ids)
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
         {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}],
        betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        way = max(0, step - warmup) / max(1, steps - warmup)
        for group in optimizer.param_groups:  # cosine from the peak to a tenth of it
            group["lr"] = peak * min(step / warmup, 0.55 + 0.45 * math.cos(math.pi * way))
        at = torch.randint(len(ids) - model.context, (rows, 1))
        text = ids[at + torch.arange(model.context + 1)]
        logits = model.lm_head(model.hidden(text[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, time.perf_counter() - began


def baseline(train, held_out, seed, steps=2000):
    """Train the baseline, print a line, and return (bits per byte, seconds).

    Its characters are bytes. Those that the training text lacks share one id, and each of them
    in the held-out text costs the choice between them besides.
    """
    train, held_out = (np.frombuffer(t.encode(), np.uint8) for t in (train, held_out))
    known = np.unique(train)
    table = np.full(256, len(known))
    table[known] = np.arange(len(known))
    vocab_size = min(256, len(known) + 1)
    model, taken = train_baseline(table[train], vocab_size, steps, seed)
    ids = table[held_out]
    extra = math.log2(vocab_size) + (ids == len(known)).sum() * math.log2(max(1, 256 - len(known)))
    found = score(model, ids, np.ones_like(ids), extra, model.context - 1)
    print(f"baseline, seed {seed}: {found:.4f} bits/byte after {taken:.2f} s; {steps} steps, "
          f"{vocab_size} characters, {sum(p.numel() for p in model.parameters()):,} parameters",
          flush=True)
    return found, taken


# --- the command -------------------------------------------------------------------------------

def split(path):
    """Return a file's first 90% of characters, and the rest; ValueError when it is too short."""
    text = pathlib.Path(path).read_bytes().decode()
    if len(text) < LEAST_TEXT:
        raise ValueError(f"{path} has {len(text):,} characters: at least {LEAST_TEXT:,} are needed")
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def table(train, held_out, times, seeds):
    """Print the baseline, and for each time the median; last, what the record is."""
    goal, whole = baseline(train, held_out, 0)
    medians = {}
    for seconds in sorted([*times, whole]):
        medians[seconds] = statistics.median(
            record(train, held_out, seconds, seed) for seed in range(seeds))
    print(f"\n{'seconds':>8}{'of the baseline':>17}{'median bits/byte':>18}")
    for seconds, median in medians.items():
        print(f"{seconds:>8.2f}{'1/%.1f' % (whole / seconds):>17}{median:>18.4f}")
    reached = [seconds for seconds, median in medians.items() if median <= goal]
    print(f"the baseline's {goal:.4f} bits/byte in its {whole:.1f} s: "
          + (f"reached in {reached[0]:.2f} s, 1/{whole / reached[0]:.1f} of its time" if reached
             else "not reached"))


def main():
    parser = Parser("laptop_record", __doc__.split("\n")[0])
    parser.prog = "laptop_record"
    parser.add_argument("text", help="a text file, UTF-8")
    parser.add_argument("--seconds", type=float, help="how long to train")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--seeds", type=int, help="runs for a median (default 1; 5 in a table)")
    parser.add_argument("--baseline", action="store_true", help="nanoGPT's laptop recipe")
    parser.add_argument("--table", action="store_true", help="the baseline, then --times")
    parser.add_argument("--times", default="1.5,4", help="seconds, beside the baseline's own")
    args = parser.parse_args()
    if args.seconds is not None and not 0 < args.seconds < math.inf:
        raise ValueError(f"seconds is {args.seconds}: it must be above 0")
    if args.seed < 0 or args.seeds is not None and args.seeds < 1:
        raise ValueError("seed must be at least 0, and seeds at least 1")
    try:
        times = [float(seconds) for seconds in args.times.split(",")]
    except ValueError:
        raise ValueError(f"times {args.times!r} are no numbers with commas between them") from None
    if not all(0 < seconds < math.inf for seconds in times):
        raise ValueError(f"times {args.times!r} must be above 0")
    if not (args.seconds or args.baseline or args.table):
        raise ValueError("nothing to do: give --seconds, --baseline or --table")
    parts = split(args.text)
    if args.baseline:
        baseline(*parts, args.seed)
    if args.seconds:
        found = [record(*parts, args.seconds, args.seed + n) for n in range(args.seeds or 1)]
        print(f"median {statistics.median(found):.4f}")
    if args.table:
        table(*parts, times, args.seeds or 5)


if __name__ == "__main__":
    if any(os.environ.get(name) is None for name in ENVIRONMENT):  # both act only from the start on
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})
    run(main)
