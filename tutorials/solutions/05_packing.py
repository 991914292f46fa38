"""Worked solutions of 05_packing.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count
answer = 1 - (100 + 200 + 300) / (3 * 512)  # about 61%


# 2. Count a ramp
answer = (40 * 2 + 80 * 4 + 280 * 8) * 256  # 675,840


# 3. Find the documents
def number_documents(inputs, end):
    """inputs (B, T) int64 → (B, T) int64: equal for two tokens of a row in one document"""
    return (inputs == end).cumsum(dim=1)


# 4. Who is next?
def next_source(weights, served, T):
    """{source: share}, {source: tokens served}, tokens in a row → a source"""
    total = sum(served.values()) + T
    return max(weights, key=lambda name: weights[name] * total - served[name])


# 5. Mend this packer: keep the end tokens, cut every T, and let the last row be short
def broken_pack(documents, T):
    """list of ids, an end token first in each → list of (inputs, targets); rows of T, or fewer"""
    stream = np.concatenate(documents)
    following = np.append(stream[1:], end)
    return [(stream[i:i + T], following[i:i + T]) for i in range(0, len(stream), T)]


# 6. Do not cut
def pack_whole(lengths, T):
    """list of lengths, row length → list of rows, each a list of the numbers of its documents"""
    rows, room = [], []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        fits = [row for row in range(len(rows)) if room[row] >= lengths[n]]
        if not fits:
            fits = [len(rows)]
            rows.append([])
            room.append(T)
        best = min(fits, key=lambda row: room[row])
        rows[best].append(n)
        room[best] -= lengths[n]
    return rows
