"""Worked solutions of 05_packing.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count
answer = 1 - (100 + 200 + 300) / (3 * 512)  # about 61%


# 2. What does a mask leave?
def pairs_left(lengths):
    """lengths of the documents of a row → pairs of a position and one that it may look at"""
    return sum(n * (n + 1) // 2 for n in lengths)


# 3. Find the documents
def number_documents(inputs, end):
    """inputs (B, T) int64 → (B, T) int64: equal for two tokens of a row in one document"""
    return (inputs == end).cumsum(dim=1)


# 4. Mend this packer: keep the end tokens, cut every T, and let the last row be short
def broken_pack(documents, T):
    """list of ids, an end token first in each → list of (inputs, targets); rows of T, or fewer"""
    stream = np.concatenate(documents)
    following = np.append(stream[1:], end)
    return [(stream[i:i + T], following[i:i + T]) for i in range(0, len(stream), T)]


# 5. Do not cut
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
