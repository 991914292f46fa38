"""Worked solutions of 01_tokenizer.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count
answer = 2048 - 256 - 1  # 1,791 merges


# 2. By hand: a-n stands there three times, b-a and n-a twice. Then the chunks read b|an|an|a and
# b|an|d, and of the new pairs only (b, an) occurs twice
first, second = "an", "ban"


# 3. The price of a vocabulary
more_parameters = (2048 - 512) * 128  # 196,608
at_512, at_2048 = (rates["English"][sizes.index(size)] for size in (512, 2048))
saved_per_cent = 100 * (1 - at_512 / at_2048)


# 4. Mend this decoder: bytes first, then text
def broken_decode(ids, tokenizer):
    """list of ids → text"""
    return b"".join(tokenizer.decode_bytes([token]) for token in ids).decode("utf-8", "replace")


# 5. Which model is better?
def bits_per_byte(nats_per_token, bytes_per_token):
    """loss of a token, bytes that it stands for → bits for each byte"""
    return nats_per_token / 0.6931471805599453 / bytes_per_token  # ln 2


better = "B"


# 6. Encode
def naive_encode(text, merges):
    """text, [((left, right), new), …] → list of ids"""
    ids = []
    for chunk in regex.findall(DEFAULT_PATTERN, text):
        symbols = list(chunk.encode("utf-8"))
        for pair, new in merges:
            symbols = replace_pair(symbols, pair, new)
        ids += symbols
    return ids
