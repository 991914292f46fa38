"""README's picture of a run: held-out bits per byte by source over training tokens, as an SVG file.

    python tutorials/experiments/curve.py runs/tiny     # writes tutorials/curve.svg
"""

import html
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.cli import run
from nanoseek.data import read_manifest
from nanoseek.scale.folder import read_log

COLOURS = ("#3b82c4", "#d0662c", "#3f9b57", "#a4508b", "#8a7a1f")  # seen on white and on black
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 60, 570, 20, 330  # the picture and its axes
HIGHEST = 6.0  # bits per byte: an untrained model's would flatten all that follows


def write_curve(log, floors, path):
    """Draw the scores in the rows of log.jsonl; floors: {source: bits per byte}, where known."""
    rows, parts = [row for row in log if row.get("held_out")], []
    if not rows:
        return
    most = 1.05 * min(HIGHEST, max(max(row["held_out"].values()) for row in rows))
    last = rows[-1]["tokens"]

    def line(points, colour, style):  # points: (tokens, bits per byte)
        places = " ".join(f"{LEFT + (RIGHT - LEFT) * tokens / last:.1f},"
                          f"{BOTTOM - (BOTTOM - TOP) * min(1, bits / most):.1f}"
                          for tokens, bits in points)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" {style}/>')

    def text(x, y, words, anchor="middle", style=""):
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {style}>'
                     f'{html.escape(words)}</text>')

    text((LEFT + RIGHT) / 2, HEIGHT - 12, "training tokens")
    text(14, HEIGHT / 2, "held-out bits per byte (dashed: floor)",
         style=f'transform="rotate(-90 14 {HEIGHT / 2:.0f})"')
    for share in (0, 0.25, 0.5, 0.75, 1):
        text(LEFT + (RIGHT - LEFT) * share, BOTTOM + 18, f"{share * last / 1e6:.2f}M")
        text(LEFT - 8, BOTTOM - (BOTTOM - TOP) * share + 4, f"{share * most:.2f}", "end")
        line([(0, share * most), (last, share * most)], "#888", 'stroke-opacity="0.25"')
    for number, (source, bits) in enumerate(sorted(rows[-1]["held_out"].items())):
        colour = COLOURS[number % len(COLOURS)]
        line([(row["tokens"], row["held_out"][source]) for row in rows], colour, 'stroke-width="2"')
        text(RIGHT + 6, TOP + 18 * number + 10, f"{source} {bits:.3f}", "start", f'fill="{colour}"')
        if source in floors:
            line([(0, floors[source]), (last, floors[source])], colour, 'stroke-dasharray="5 4"')
    pathlib.Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#888">{"".join(parts)}</svg>\n', "utf-8")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny")
    entries = read_manifest(folder / "tokens")["splits"]["held_out"]
    floors = {source: -entry["log2_probability"] / entry["bytes"]
              for source, entry in entries.items() if entry["log2_probability"] is not None}
    write_curve(read_log(folder), floors, pathlib.Path(__file__).parents[1] / "curve.svg")


if __name__ == "__main__":
    run(main)
