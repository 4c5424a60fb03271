"""Charts are well-formed, to scale, and hold what they are given."""

from __future__ import annotations

from xml.etree import ElementTree

from corebound.engine.bench.peers.plots import Bar, bar_chart


def test_bars_are_sorted_to_scale_and_ours_stand_out() -> None:
    chart = bar_chart("A < B", [Bar(label="x & y", value=0.5), Bar(label="ours", value=1.0, is_ours=True)], mark=1.0)
    root = ElementTree.fromstring(chart)
    bars = [element for element in root if element.tag.endswith("rect")]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == 2 * widths[1]
    assert bars[0].attrib["fill"] != bars[1].attrib["fill"]
    texts = [element.text for element in root if element.tag.endswith("text")]
    assert texts == ["A < B", "ours", "1.00", "x & y", "0.50"]
    assert len([element for element in root if element.tag.endswith("line")]) == 1


def test_bars_of_nothing_are_drawn() -> None:
    ElementTree.fromstring(bar_chart("none", [Bar(label="a", value=0.0)]))
