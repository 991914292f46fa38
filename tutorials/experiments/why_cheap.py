"""Why did DeepSeek 67B cost so much less than Llama 2 70B? Factor by factor, from published figures.

    python tutorials/experiments/why_cheap.py     # the sum, and why_cheap.svg beside this file

A bill is FLOPs / (peak × MFU) × rent, so the ratio of two bills is a product of four ratios. The
rents are listed prices of different sellers, not what either lab paid; cost_tables.json has the
sources.
"""

import pathlib
import sys
from statistics import median

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.cost import flops_per_token, tables
from nanoseek.deepseek.hugging_face import countable


def calibrate():
    """Return the published bills with our "flops", the "ratio" of ours to theirs without attention,
    the "mfu" that the GPU-hours imply, and the "error" of predicting its hours with the median MFU
    of the other dense models on its chip (those that are no mixture of experts)."""
    bills, chips = tables()["bills"], tables()["hardware"]
    for bill in bills:
        each = flops_per_token(countable(bill["config"]), bill["context"])
        hours, published = bill["gpu_hours"], bill.get("published_flops")
        bill["flops"] = each["total"] * bill["tokens"]
        bill["ratio"] = published and (each["matrices"] + each["head"]) * bill["tokens"] / published
        bill["mfu"] = hours and bill["flops"] / hours / 3600 / chips[bill["chip"]]["tflops"] / 1e12
    dense = [bill for bill in bills if bill["mfu"] and "n_routed_experts" not in bill["config"]]
    for bill in bills:
        others = [b["mfu"] for b in dense if b["chip"] == bill["chip"] and b is not bill]
        bill["error"] = bill["mfu"] / median(others) - 1 if bill["mfu"] and others else None
    return bills


def factors():
    """Return (dollars of both runs, {factor: by how much it made DeepSeek's run cheaper})."""
    bills, chips = {row["model"]: row for row in calibrate()}, tables()["hardware"]
    llama, deepseek = bills["Llama 2 70B"], bills["DeepSeek 67B"]
    before, after = chips[llama["chip"]], chips[deepseek["chip"]]
    runs = llama["tokens"] / deepseek["tokens"]  # its hours are for 1T tokens, and it read 2T
    dollars = (llama["gpu_hours"] * before["dollars_per_hour"],
               runs * deepseek["gpu_hours"] * after["dollars_per_hour"])
    return dollars, {"FLOPs of the run": llama["flops"] / (runs * deepseek["flops"]),
                     "peak of the chip": after["tflops"] / before["tflops"],
                     "MFU": deepseek["mfu"] / llama["mfu"],
                     "rent of an hour": before["dollars_per_hour"] / after["dollars_per_hour"]}


def plot(shown, axes):
    """Draw a bar for each factor: to the right what made it cheaper, to the left what did not."""
    for place, (name, factor) in enumerate(reversed(shown.items())):
        axes.barh(place, factor - 1, left=1, color="#3b82c4" if factor > 1 else "#d0662c")
        axes.annotate(f"{factor:.2f}", (factor, place), (4 if factor > 1 else -26, 0), va="center",
                      textcoords="offset points", color="gray", fontsize=8)
    axes.set_yticks(range(len(shown)), list(shown)[::-1], fontsize=8)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(xscale="log", xlim=(0.6, 4.5), xlabel="times as cheap as Llama 2 70B (orange: dearer)")
    axes.set_xticks([0.7, 1, 2, 4], ["0.7", "1", "2", "4"])
    axes.minorticks_off()


def main():
    import matplotlib.pyplot as plt
    plt.rcParams.update({"axes.labelcolor": "gray", "xtick.color": "gray", "ytick.color": "gray",
                         "axes.edgecolor": "gray", "savefig.transparent": True,
                         "figure.facecolor": "none", "axes.facecolor": "none",
                         "svg.hashsalt": "nanoseek"})
    (theirs, ours), found = factors()
    print(f"${theirs:,.0f} against ${ours:,.0f}: {theirs / ours:.2f} times as cheap")
    for name, factor in found.items():
        print(f"  {name:<18}{factor:6.3f}")
    figure, axes = plt.subplots(figsize=(6, 2))
    plot({**found, "the bill": theirs / ours}, axes)
    figure.savefig(pathlib.Path(__file__).with_suffix(".svg"), bbox_inches="tight",
                   metadata={"Date": None})


if __name__ == "__main__":
    main()
