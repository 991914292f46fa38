"""tutorials/experiments/curve.py: the picture of a run is well-formed and shows lines and floors."""

import pathlib
import sys
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tutorials" / "experiments"))
from curve import write_curve


def test_the_curve_is_a_well_formed_picture_with_floors(tmp_path):
    log = [{"tokens": 100 * i, "held_out": {"a<b": 4.0 / i, "b": 5.0 / i}} for i in (1, 2, 3)]
    log.insert(1, {"tokens": 150})
    write_curve(log, {"b": 0.5}, tmp_path / "c.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "c.svg").getroot()
    lines = [e for e in root.iter() if e.get("stroke-width") == "2"]
    assert len(lines) == 2 and all(len(line.get("points").split()) == 3 for line in lines)
    assert sum("stroke-dasharray" in e.attrib for e in root.iter()) == 1
    write_curve([{"tokens": 1}, {"tokens": 2, "held_out": {}}], {}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
