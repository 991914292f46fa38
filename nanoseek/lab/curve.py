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
    """Draw held-out bits per byte by source over tokens, the floors dashed.

    log: the rows of log.jsonl; floors: {source: bits per byte} where known.
    """
    points = {}
    for row in log:
        for source, value in row.get("held_out", {}).items():
            points.setdefault(source, []).append((row["tokens"], value))
    if not points:
        return
    values = [v for line in points.values() for _, v in line] + list(floors.values())
    most, right = min(max(values), HIGHEST) * 1.05, max(line[-1][0] for line in points.values())

    def place(x, y):
        """Return where tokens x and bits per byte y stand on the picture."""
        return (LEFT + (WIDTH - LEFT - RIGHT) * x / max(1, right),
                HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(y, most) / most)

    parts, labels = _axes(place, right, most), []
    for (source, line), colour in zip(sorted(points.items()), COLOURS * len(points)):
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')
        labels.append((place(*line[-1])[1], f"{html.escape(source)} {line[-1][1]:.3f}", colour))
        if source in floors:
            x, y = place(right, floors[source])
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{x:.1f}" y2="{y:.1f}" '
                         f'stroke="{colour}" stroke-dasharray="5 4"/>')
    lowest = HEIGHT - BOTTOM
    for y, text, colour in sorted(labels, reverse=True):  # from the lowest up, none over another
        lowest = min(y, lowest) - 15
        parts.append(_text(place(right, 0)[0] + 6, lowest + 19, text, f'fill="{colour}"'))
    pathlib.Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#888">{"".join(parts)}</svg>\n',
        encoding="utf-8")


def _text(x, y, text, style):
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{text}</text>'


def _axes(place, right, most):
    """Return the SVG of ticks, grid lines and titles."""
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(right * share, 0)
        parts.append(_text(x, y + 18, f"{right * share / 1e6:.2f}M", 'text-anchor="middle"'))
        x, y = place(0, most * share)
        parts.append(_text(x - 8, y + 4, f"{most * share:.2f}", 'text-anchor="end"'))
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{place(right, 0)[0]:.1f}" y2="{y:.1f}" '
                     'stroke="#888" stroke-opacity="0.25"/>')
    x, y = place(right / 2, 0)
    return [*parts, _text(x, y + 38, "training tokens", 'text-anchor="middle"'),
            _text(14, HEIGHT / 2, "held-out bits per byte (dashed: floor)",
                  f'text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2:.0f})"')]
