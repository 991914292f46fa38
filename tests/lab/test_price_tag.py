"""price_tag.py: numbers to three figures, and every assumption on the screen."""

import pytest

from nanoseek.cost import price_tag
from nanoseek.lab.price_tag import format_price_tag, show
from nanoseek.model import ModelConfig


@pytest.mark.parametrize("value, unit, text", [
    (999.6, "", "1.00 k"), (6.91e9, "", "6.91 B"), (6.91e9, "B", "6.91 GB"), (12.34, "s", "12.3 s"),
    (180, "s", "3.0 min"), (9000, "s", "2.50 h"), (0, "B", "0 B"), (999.4, "", "999"),
    (4.2e-6, "kWh", "0.00420 Wh"), (0.0125, "kWh", "12.5 Wh"), (4.5e25, "FLOP", "45.0 YFLOP"),
    (5e15, "", "5000 T"), (123456, "", "123 k"), (0.4567, "%", "45.7%"), (0.0031, "$", "$0.0031"),
    (1234.5, "$", "$1,234.50"), (601200.4, "h", "601,200 h"), (33.333, "h", "33.3 h")])
def test_numbers_are_written_to_three_figures(value, unit, text):
    assert show(value, unit) == text


def test_a_bill_shows_what_it_counts_and_assumes():
    tag = price_tag(ModelConfig(hidden_size=32), 1000, 90, 1e9, 64)
    shown = format_price_tag({**tag, "bits_per_byte": {"stories": 1.25}}, [("law", "none")])
    assert tag["convention"] in shown and "90.0 s" in shown
    assert "bits per byte at the end, stories  1.250\n" in shown and "law " in shown
    for name, entry in tag["assumptions"].items():
        assert f"  {name} {entry['value']:.3g}: {entry['source']}" in shown
