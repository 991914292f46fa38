"""Draw the curve of a run: held-out bits per byte by source over training tokens, as an SVG file.

    write_curve(rows_of_log, {"stories_en": 0.101}, "runs/tiny/curve.svg")

An SVG file is text that every browser draws: a picture without a plotting library.
"""

import html
import pathlib

COLOURS = ("#3b82c4", "#d0662c", "#3f9b57", "#a4508b", "#8a7a1f")  # seen on white and on black
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 60, 150, 20, 50  # the plot's margins
HIGHEST = 6.0  # bits per byte: an untrained model's would flatten all that follows


def write_curve(log, floors, path):
    """Draw the scores in the rows of log.jsonl; floors: {source: bits per byte}, where known."""
    points = {}
    for row in log:
        for source, value in row.get("held_out", {}).items():
            points.setdefault(source, []).append((row["tokens"], value))
    if not points:
        return
    most = 1.05 * min(HIGHEST, max(value for line in points.values() for _, value in line))
    right = max(tokens for line in points.values() for tokens, _ in line)

    def place(tokens, value):  # → x, y on the picture
        return (LEFT + (WIDTH - LEFT - RIGHT) * tokens / right,
                HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(1, value / most))

    middle = 'text-anchor="middle"'
    parts = [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "training tokens", middle),
             _text(14, HEIGHT / 2, "held-out bits per byte (dashed: floor)",
                   f'{middle} transform="rotate(-90 14 {HEIGHT / 2:.0f})"')]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(share * right, share * most)
        parts += [_text(x, HEIGHT - BOTTOM + 18, f"{share * right / 1e6:.2f}M", middle),
                  _text(LEFT - 8, y + 4, f"{share * most:.2f}", 'text-anchor="end"'),
                  _line([(LEFT, y), (WIDTH - RIGHT, y)], "#888", 'stroke-opacity="0.25"')]
    for number, (source, line) in enumerate(sorted(points.items())):
        colour = COLOURS[number % len(COLOURS)]
        parts += [_line([place(*point) for point in line], colour, 'stroke-width="2"'),
                  _text(WIDTH - RIGHT + 6, TOP + 18 * number + 10,
                        f"{html.escape(source)} {line[-1][1]:.3f}", f'fill="{colour}"')]
        if source in floors:
            ends = [place(0, floors[source]), place(right, floors[source])]
            parts.append(_line(ends, colour, 'stroke-dasharray="5 4"'))
    pathlib.Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#888">{"".join(parts)}</svg>\n', "utf-8")


def _text(x, y, text, style):
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{text}</text>'


def _line(corners, colour, style):
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" {style}/>'
