"""A bill on the screen: numbers with their units in columns, and below them what was assumed.

    print(format_price_tag(price_tag(config, 8e6, seconds=120, ceiling=4e11, context=256)))"""

import math

from nanoseek.cost import tables


def show(value, unit=""):
    """Write a number to three figures: 1.24e9 B is "1.24 GB", a bare count "1.24 B"."""
    if unit == "%":
        return f"{100 * value:.1f}%"
    if unit == "$":
        return f"${value:,.2f}" if value >= 1 else f"${value:.2g}"
    if unit == "s" and value >= 120:
        return f"{value / 60:.1f} min" if value < 7200 else show(value / 3600, "h")
    if unit == "kWh":
        return show(1000 * value, "Wh")
    if unit in ("h", "tokens") and value >= 1000:
        return f"{value:,.0f} {unit}"
    value, prefixes = float(f"{value:.3g}"), ["", *("kMGTPEZY" if unit else "kMBT")]
    while value >= 1000 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    places = max(0, 2 - math.floor(math.log10(value or 100)))
    return f"{value:.{places}f} {prefixes[0]}{unit}".strip()


def columns(rows):
    """Lay out rows of strings in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def format_price_tag(bill, more=()):
    """Return a bill as a short table, what it counts and assumes below it; more: further rows."""
    rows = [(name, show(bill[key], unit)) for key, name, unit in tables()["labels"] if key in bill]
    rows += [(f"bits per byte at the end, {source}", f"{bits:.3f}")
             for source, bits in bill.get("bits_per_byte", {}).items()]
    lines = [columns([*rows, *more])]
    if "assumptions" in bill:
        lines += [f"FLOPs: {bill['convention']}", "assuming", *(
            f"  {name} {entry['value']:.3g}: {entry['source']}"
            for name, entry in bill["assumptions"].items())]
    return "\n".join(lines)
