"""Look for differences between nanoseek's tokenizer and its peers on random strings.

    python tests/bench/diff_tokenizer.py                       # 100,000 strings: about 15 minutes
    python tests/bench/diff_tokenizer.py --strings 2000 --seed 7

Every string goes through tokenizers in nine styles (our own split, DeepSeek LLM, GPT-2, Llama 3,
Qwen, …), built here with the `tokenizers` library and saved; ours loads the file and must give
the ids that `tokenizers` gives, and the text back. Where tiktoken can run the same pattern, on
the same merges, its ids must be the same, too. Beside them, training is compared with a trainer
that counts all pairs anew for each merge.

Characters: all planes, those that this Python, `regex`, `tokenizers` and tiktoken class alike.
The sources of a string: words and code, Chinese, emoji, random code points, white space, long
runs, names of special tokens, and mixtures of these.
"""

import argparse
import collections
import os
import random
import sys
import tempfile
import time

import numpy as np
import regex
import tiktoken
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from nanoseek import tokenizer as ours

DEEPSEEK = [r"[\r\n]", r"\s?\p{L}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<｜begin▁of▁sentence｜>"]


def common_characters():
    """Return the characters that `regex` and `tokenizers` put in the same classes, both ways."""
    everything = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    text = "".join(everything)
    alike = np.ones(len(text), bool)
    for name in (r"\p{L}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}", r"\s", r"\p{Z}"):
        here = np.array([bool(regex.match(name, c)) for c in everything])
        split = pre_tokenizers.Split(Regex(name), "isolated")
        there = np.zeros(len(text), bool)
        for piece, (start, stop) in split.pre_tokenize_str(text):
            there[start:stop] = stop - start == 1
        alike &= here == there | (here & ~there & False)
    return [c for c, same in zip(everything, alike) if same]
