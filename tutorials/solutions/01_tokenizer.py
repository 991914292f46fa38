"""Worked solutions of 01_tokenizer.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count
answer = 2048 - 256 - 1  # 1,791 merges


# 2. Encode
def naive_encode(text, merges):
    """text, [((left, right), new), …] → list of ids"""
    ids = []
    for chunk in regex.findall(DEFAULT_PATTERN, text):
        symbols = list(chunk.encode("utf-8"))
        for pair, new in merges:
            symbols = replace_pair(symbols, pair, new)
        ids += symbols
    return ids


# 3. The price of a vocabulary
more_parameters = (2048 - 512) * 128  # 196,608
at_512, at_2048 = (rates["English"][sizes.index(size)] for size in (512, 2048))
saved_per_cent = 100 * (1 - at_512 / at_2048)
