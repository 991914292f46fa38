"""Plumbing of the notebooks: fair timing, and the pictures. What they show is said in the cells."""

import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba

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


def padded_packed_and_mask(real, document_ids, mask, chosen):
    """real (rows, T): no padding; document_ids (rows, T); the mask (T, T) of row `chosen`"""
    colours = np.array([to_rgba(BLUE), to_rgba(ORANGE), to_rgba(GRAY, 0.3), (0, 0, 0, 0)])
    hidden, empty, T = 2, 3, len(mask)
    rows = np.arange(len(real))[:, None]
    left, middle, right = panels(1, 3, width=8, height=3)
    left.imshow(colours[np.where(real, rows % 2, empty)], aspect="auto", interpolation="none")
    middle.imshow(colours[document_ids % 2], aspect="auto", interpolation="none")
    outside = np.where(np.tri(T), hidden, empty)
    right.imshow(colours[np.where(mask, document_ids[chosen] % 2, outside)], interpolation="none")
    left.set(title="padded: one document a row", ylabel="row of the batch")
    middle.set(title="packed")
    right.set(title=f"the mask of packed row {chosen}", xlabel="position looked at",
              ylabel="position that looks")
    for axes in (left, middle):
        axes.set(xlabel="position", yticks=range(len(real)))
        axes.hlines(np.arange(len(real) - 1) + 0.5, -0.5, T - 0.5, color=GRAY, linewidth=0.5)
    for axes in (left, middle, right):
        axes.set_title(axes.get_title(), fontsize=9)
    plt.show()


def losses_by_way(results, text):
    """{way: losses of its seeds}, {way: tokens of text that it read} → a point for each seed"""
    axes = panels(height=2.6)
    for number, (name, color) in enumerate(zip(results, (GRAY, ORANGE, BLUE, GREEN))):
        axes.plot(results[name], [number] * len(results[name]), "o", color=color, alpha=0.8)
    axes.set_yticks(range(len(results)),
                    [f"{name}\n{text[name]:,} tokens read" for name in results], fontsize=8)
    axes.set(xlabel="nats a token, held-out stories: lower is better",
             ylim=(len(results) - 0.5, -0.5))
    plt.show()


def killed_and_resumed(steps, every, killed_after, resumed_at):
    """The steps of two processes: one killed, one that goes on from the newest checkpoint"""
    axes = panels(height=1.7)
    axes.barh(0, resumed_at, color=BLUE, height=0.5)
    axes.barh(0, killed_after - resumed_at, left=resumed_at, color=ORANGE, height=0.5)
    axes.barh(1, steps - resumed_at, left=resumed_at, color=BLUE, height=0.5)
    axes.annotate("killed: orange is lost", (killed_after, 0), (6, 0), color=ORANGE,
                  textcoords="offset points", va="center")
    for place, (first, last) in enumerate(((0, resumed_at), (resumed_at, steps))):
        saves = [step for step in range(every, last + 1, every) if step > first]
        axes.plot(saves, [place] * len(saves), "|", color="black", markersize=14)
    axes.plot([resumed_at] * 2, [0, 1], color=GRAY, linestyle=":")
    axes.set_yticks([0, 1], ["first process", "second process"])
    axes.set(xlabel="step (black: a checkpoint was saved)", xlim=(0, steps), ylim=(1.5, -0.5))
    plt.show()


def memory_by_depth(depths, megabytes):
    """depths, {what is recomputed: megabytes at each} → a line for each"""
    axes = panels()
    for (name, values), color in zip(megabytes.items(), (ORANGE, VIOLET, BLUE)):
        axes.plot(depths, values, "o-", color=color)
        axes.annotate(name, (depths[-1], values[-1]), (6, 0), textcoords="offset points",
                      color=color, va="center")
    axes.set(xlabel="layers", ylabel="MB held at once in a step", xticks=depths,
             xlim=(0, 1.2 * depths[-1]), ylim=(0, None))
    plt.show()


def schedules(factors):
    """{schedule: the factor of the peak rate in each step} → a line for each"""
    axes = panels(height=2.8)
    for (name, values), (color, style) in zip(factors.items(), ((GRAY, "--"), (GREEN, ":"),
                                                                (BLUE, "-"), (ORANGE, "-."))):
        axes.plot(values, style, color=color, label=name)
    axes.legend(frameon=False, labelcolor="linecolor", loc="lower center")
    axes.set(xlabel=f"step of {len(values)}", ylabel="factor of the peak rate", ylim=(0, 1.05))
    plt.show()


def strengths_by_round(paths):
    """{a strength at first: the strength after 0, 1, 2, … rounds} → a line for each"""
    axes = panels(height=3)
    axes.axhline(1, color=GRAY, linestyle=":")
    for (first, path), color in zip(paths.items(), (BLUE, GREEN, VIOLET, ORANGE, GRAY)):
        axes.plot(path, "o-", color=color, markersize=4)
        axes.annotate(f"{first:g}", (0, first), (-6, 0), textcoords="offset points", color=color,
                      ha="right", va="center")
    axes.set(yscale="log", xlabel="round", ylabel="strength (singular value)", xlim=(-0.6, None))
    plt.show()


def losses_by_rate(losses):
    """{optimizer: {learning rate: loss}} → a line for each, the lowest point filled"""
    axes = panels(height=3.2)
    for (name, found), color, above in zip(losses.items(), (ORANGE, BLUE), (8, -14)):
        best = min(found, key=found.get)
        axes.plot(found.keys(), found.values(), "o-", color=color, markerfacecolor="none")
        axes.plot(best, found[best], "o", color=color)
        axes.annotate(name, (best, found[best]), (0, above), textcoords="offset points",
                      color=color, ha="center")
    rates = sorted({rate for found in losses.values() for rate in found})
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="nats a token, held-out stories")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=8)
    axes.minorticks_off()
    axes.margins(y=0.15)
    plt.show()


def mfu_of_bills(rows):
    """published bills with their "mfu" → a point for each, with the name of its chip"""
    rows = sorted((row for row in rows if row["mfu"]), key=lambda row: row["mfu"])
    axes = panels(height=0.28 * len(rows) + 0.8)
    for place, row in enumerate(rows):
        color = ORANGE if "n_routed_experts" in row["config"] else BLUE
        axes.plot(100 * row["mfu"], place, "o", color=color)
        axes.annotate(row["chip"], (100 * row["mfu"], place), (7, 0), textcoords="offset points",
                      color="gray", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=8)
    axes.set(xlabel="MFU implied by the published hours, % (orange: mixture of experts)",
             xlim=(0, 100 * rows[-1]["mfu"] + 8))
    axes.grid(axis="x", color="gray", alpha=0.2)
    plt.show()


def isoflops(curves, optima):
    """{budget: {parameters: loss}}, {budget: (parameters, loss)} of the lowest points

    Each budget has its points, the parabola through the best and its neighbours, and a cross.
    """
    axes = panels(height=4)
    for (budget, points), color in zip(curves.items(), (BLUE, ORANGE, GREEN, VIOLET)):
        sizes = sorted(points)
        best = sizes.index(min(points, key=points.get))
        near = sizes[best - 1:best + 2]
        parabola = np.polyfit(np.log(near), [points[size] for size in near], 2)
        along = np.geomspace(near[0], near[-1], 60)
        axes.plot(along, np.polyval(parabola, np.log(along)), color=color)
        axes.plot(sizes, [points[size] for size in sizes], "o:", color=color, markersize=4)
        axes.annotate(f"{budget:.1e} FLOPs", (sizes[0], points[sizes[0]]), (-6, 0),
                      textcoords="offset points", color=color, ha="right", va="center")
    axes.plot(*zip(*optima.values()), "x--", color="gray", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="parameters in the layers (crosses: the optima)",
             ylabel="bits per byte, older stories", xlim=(1.3e3, None))
    axes.set_yticks([0.15, 0.2, 0.3, 0.4, 0.6, 0.8], ["0.15", "0.2", "0.3", "0.4", "0.6", "0.8"])
    axes.minorticks_off()
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


def loads_over_time(loads, width=10):
    """{way: each expert's load in each step over the mean (steps, experts)} → a panel for each

    The mean of `width` steps at a time is drawn; the busiest expert of the last steps in orange.
    """
    for axes, (way, found) in zip(panels(1, len(loads), 9, 2.8, sharey=True), loads.items()):
        lines = np.asarray(found).reshape(-1, width, len(found[0])).mean(axis=1)
        at = width * (np.arange(len(lines)) + 0.5)
        axes.plot(at, lines, color=BLUE, linewidth=0.8, alpha=0.7)
        axes.plot(at, lines[:, lines[-1].argmax()], color=ORANGE)
        axes.axhline(1, color=GRAY, linestyle=":")
        axes.set(title=way, xlabel="step", ylim=(0, None))
        axes.label_outer()
    axes.figure.axes[0].set_ylabel("load over the mean")
    plt.show()
