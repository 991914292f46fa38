"""Plumbing of the notebooks: fair timing, and the pictures. What they show is said in the cells."""

import time

import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE, GREEN, VIOLET, GRAY = "#3b82c4", "#d0662c", "#3a9a5b", "#8a63c9", "#8a8a8a"
STYLE = {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.transparent": True,
         "text.color": "gray", "axes.labelcolor": "gray", "axes.edgecolor": "gray",
         "xtick.color": "gray", "ytick.color": "gray"}  # readable on white and on black


def race(rounds=5, clock=time.perf_counter, **actions):
    """name=function, … → {name: its least time, in seconds}

    The functions take turns, so that what else the machine does hits all of them. The first round
    only warms up. Of the others the least time counts: noise makes a time longer, never shorter.
    For work of one thread, time.process_time is steadier: it leaves out what other programs take.
    """
    seconds = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            began = clock()
            action()
            seconds[name].append(clock() - began)
    return {name: min(values[1:]) for name, values in seconds.items()}


def panels(rows=1, columns=1, width=6, height=3.4, **more):
    """A figure's axes, drawn in gray on nothing."""
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **more)[1]


def bytes_per_token_by_size(sizes, rates):
    """vocabulary sizes, {language: bytes per token at each} → a line for each language"""
    axes = panels()
    for (name, values), color in zip(rates.items(), (BLUE, ORANGE)):
        axes.plot(sizes, values, marker="o", color=color)
        axes.annotate(name, (sizes[-1], values[-1]), (6, 0), textcoords="offset points",
                      color=color, va="center")
    axes.set(xscale="log", xlabel="vocabulary size (tokens)",
             ylabel="bytes per token, unseen text", xlim=(240, 3600), ylim=(0, None))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    plt.show()


def equal_bands(pairs, bands, rows):
    """{title: (signature, signature)} → a square for each row of each band, filled where equal"""
    for axes, (title, (left, right)) in zip(panels(len(pairs)), pairs.items()):
        agree = (left == right)[:bands * rows].reshape(bands, rows).T
        for (row, band), equal in np.ndenumerate(agree):
            color = BLUE if agree[:, band].all() else GRAY
            axes.add_patch(plt.Rectangle((band + 0.1, row + 0.1), 0.8, 0.8, linewidth=0.5,
                                         edgecolor=GRAY, facecolor=color if equal else "none"))
        axes.set(xlim=(0, bands), ylim=(rows, 0), ylabel="row", xlabel="band", xticks=[], yticks=[])
        axes.set_title(f"{title}: {agree.all(axis=0).sum()} of {bands} bands equal", fontsize=9)
    plt.show()


def share_that_meets(formula, measured, threshold):
    """function of the Jaccard index, [(index, share), …] → a curve, and points on it"""
    index, axes = np.linspace(0, 1, 200), panels()
    axes.plot(index, formula(index), color=BLUE)
    axes.plot(*zip(*measured), "o", color=ORANGE)
    axes.axvline(threshold, color="gray", linestyle=":")
    axes.annotate("threshold", (threshold, 0.02), (-4, 0), textcoords="offset points", ha="right")
    axes.annotate("formula", (0.42, 0.2), color=BLUE, ha="right")
    axes.annotate("measured", measured[-2], (8, -12), textcoords="offset points", color=ORANGE)
    axes.set(xlabel="Jaccard index of the pair", ylabel="share of pairs that become candidates")
    plt.show()


def errors_and_sizes(powers, errors, sizes):
    """Two panels over one axis, powers of two: how well formats round there, what numbers lie there

    errors: {format: mean relative error at each power}; sizes: {kind: log2 of its numbers' sizes}
    """
    above, below = panels(2, height=5, sharex=True)
    places = {"bf16": (-41, 0.002), "fp16": (-3, 0.00022), "e5m2": (-3, 0.055), "e4m3": (-3, 0.009)}
    for (name, values), color in zip(errors.items(), (BLUE, ORANGE, VIOLET, GREEN)):
        above.plot(powers, values, color=color)
        above.text(*places[name], name, color=color, va="bottom")
    above.set(yscale="log", ylabel="mean relative error", ylim=(1e-4, 2))
    for (name, numbers), color in zip(sizes.items(), ("#b08a1e", "#c0509a", "gray")):
        counts, edges = np.histogram(numbers, np.arange(powers[0], powers[-1] + 1))
        share = 100 * counts / len(numbers)
        below.step(edges[:-1], share, where="post", color=color)
        below.text(edges[share.argmax()], share.max() + 1, name, color=color)
    below.set(xlabel="size of the number, as a power of two", ylabel="share of the numbers (%)",
              ylim=(0, 36))
    plt.show()


def losses_of_precisions(curves, width=10):
    """{way of training: losses (starts, steps)} → their mean curves; beside it, how far above fp32's

    The mean of the starts and of `width` steps at a time is drawn.
    """
    styles = {"fp32": ("gray", "-"), "bf16 autocast": (BLUE, "-"), "bf16 weights": (BLUE, "--"),
              "fp16": (ORANGE, "--"), "fp16, loss scale": (ORANGE, "-"),
              "fp8, one scale": (GREEN, "--"), "fp8, scale per block": (GREEN, "-")}
    left, right = panels(1, 2, width=8, height=3.6)
    mean = {name: np.mean(losses, axis=0).reshape(-1, width).mean(axis=1)
            for name, losses in curves.items()}
    for name, (color, line) in styles.items():
        at = width * (np.arange(len(mean[name])) + 0.5)
        left.plot(at, mean[name], line, color=color, label=name)
        if name != "fp16":  # far outside
            right.plot(at, mean[name] - mean["fp32"], line, color=color)
    left.set(xlabel="step", ylabel="loss (nats a byte), mean of three starts")
    left.legend(frameon=False, labelcolor="gray", fontsize=8)
    right.set(xlabel="step", ylabel="loss above fp32's (nats a byte)")
    plt.show()


def shared_heads(kinds, heads=4):
    """{title: key-value heads} → which query heads (above) read which key-value head (below)"""
    places = panels(1, len(kinds), width=8, height=1.9)
    for axes, (title, kv_heads) in zip(places, kinds.items()):
        group = heads // kv_heads
        for head in range(heads):
            shared = head // group
            middle = (shared + 0.5) * group - 0.5
            axes.plot((head, middle), (1, 0), color="gray", zorder=0)
            for at, kind, name, color in (((head, 1), "o", head, BLUE),
                                          ((middle, 0), "s", shared, ORANGE)):
                axes.plot(*at, kind, markersize=16, color=color)
                axes.text(*at, name, color="white", ha="center", va="center")
        axes.set(title=title, xlim=(-0.6, heads - 0.4), ylim=(-0.4, 1.4))
        axes.set_axis_off()
    places[0].text(-0.7, 1, "query heads", ha="right", va="center", color=BLUE)
    places[0].text(-0.7, 0, "key-value heads", ha="right", va="center", color=ORANGE)
    plt.show()


def attention_map(words, weights):
    """words (T), weights (T, T) → squares: the darker, the more the row looks there"""
    axes, count = panels(width=5.6, height=5), len(words)
    for (row, column), weight in np.ndenumerate(weights):
        if column <= row:
            axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=BLUE, alpha=float(weight)))
            axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor="none", edgecolor=GRAY,
                                         linewidth=0.3))
    middles = np.arange(count) + 0.5
    axes.set_xticks(middles, words, rotation=90, fontsize=9)
    axes.set_yticks(middles, words, fontsize=9)
    axes.tick_params(length=0)
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xlabel="what it looks at",
             ylabel="the word that looks")
    for side in axes.spines.values():
        side.set_visible(False)
    plt.show()


def time_of_next_token(lengths, ms):
    """lengths of texts, {way of writing: ms for one more token} → a line for each way"""
    axes = panels(height=3.2)
    for (name, values), color in zip(ms.items(), (ORANGE, BLUE)):
        axes.plot(lengths, values, "o-", color=color, markersize=4)
        axes.annotate(name, (lengths[-3], values[-3]), (-6, 8), textcoords="offset points",
                      color=color, ha="right")
    axes.set(xlabel="tokens in the text", ylabel="ms for the next one", ylim=(0, None))
    plt.show()


def growth(lengths, kilobytes, ms):
    """lengths of texts, {model: its cache in kB at each}, {model: ms of a step} → two panels"""
    left, right = panels(1, 2, width=8, height=3.2)
    for name, color in zip(ms, (GREEN, ORANGE, BLUE)):
        for axes, values in ((left, kilobytes[name]), (right, ms[name])):
            axes.plot(lengths, values, "o-", color=color, markersize=4, label=name)
    left.set(ylabel="cache (kB)")
    right.set(ylabel="a step of training (ms)")
    right.legend(frameon=False, labelcolor="gray")
    for axes in (left, right):
        axes.set(xlabel="tokens in the text", ylim=(0, None))
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
    plt.show()


def curves_of_runs(runs, healthy, lines, ylim):
    """{title: (training bits at each step, [[step, held-out bits], …])} → a panel for each run

    healthy: such a pair, drawn in gray in each panel; lines: {name: bits}, drawn across.
    """
    places = panels(2, (len(runs) + 1) // 2, width=9.5, height=5, sharex=True, sharey=True)
    for number, (axes, (title, pair)) in enumerate(zip(places.flat, runs.items())):
        for (training, held_out), colors in ((healthy, (GRAY, GRAY)), (pair, (BLUE, ORANGE))):
            axes.plot(range(1, len(training) + 1), training, color=colors[0], linewidth=0.8)
            axes.plot(*zip(*held_out), "o-", color=colors[1], markersize=3, linewidth=1)
        for place, (name, bits) in enumerate(lines.items()):
            axes.axhline(bits, color=GREEN, linestyle=":", linewidth=1)
            if number == 0:  # above the line and below it, by turns
                axes.annotate(name, (len(training), bits), (0, (2, -8)[place % 2]), fontsize=7,
                              textcoords="offset points", color=GREEN, ha="right")
        axes.set(title=title, yscale="log", ylim=ylim)
    places[0, 0].set_ylabel("bits per byte")
    places[1, 0].set_ylabel("bits per byte")
    for axes in places[-1]:
        axes.set_xlabel("step")
    plt.show()
