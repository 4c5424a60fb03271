"""Bar charts as small SVG files, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 720, 260, 60
_ROW, _BAR, _TOP = 24, 16, 34
_OURS, _OTHERS, _LINE = "#1f6feb", "#8c959f", "#cf222e"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart; ours are in another colour."""

    label: str
    value: float
    is_ours: bool = False


def bar_chart(title: str, bars: Sequence[Bar], *, digits: int = 2, mark: float | None = None) -> str:
    """Return a chart of horizontal bars, the longest on top; `mark` is a value to draw a line at, such as a ceiling."""
    ordered = sorted(bars, key=lambda bar: -bar.value)
    most = max([bar.value for bar in ordered] + ([mark] if mark is not None else [])) or 1.0
    scale = (_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH) / most
    height = _TOP + _ROW * len(ordered) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#57606a">',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, bar in enumerate(ordered):
        top = _TOP + number * _ROW
        width = max(1.0, bar.value * scale)
        colour = _OURS if bar.is_ours else _OTHERS
        parts += [
            f'<text x="{_LABEL_WIDTH - 8}" y="{top + 13}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{top + 13}">{bar.value:.{digits}f}</text>',
        ]
    if mark is not None:
        x = _LABEL_WIDTH + mark * scale
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 4}" stroke="{_LINE}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
