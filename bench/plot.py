"""Plots lines as SVG, on linear axes from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.report import Series, number

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 20, 50
COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#d97706")
LINE_HEIGHT = 18
TICKS = 6  # at most, on an axis


def svg(series: Sequence[Series]) -> str:
    """Returns a plot of series with common axes."""
    if not series or not all(one.points for one in series):
        raise ValueError("a plot needs points")
    across = _axis(max(x for one in series for x, _ in one.points))
    up = _axis(max(y for one in series for _, y in one.points))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x / across[-1] * inner_width, 1),
            round(HEIGHT - BOTTOM - y / up[-1] * inner_height, 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in up:
        x, y = place(0, value)
        parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(x - 8, y + 4, number(value), "end"))
    for value in across:
        x, y = place(value, 0)
        parts.append(f'<path d="M{x} {y}v5" stroke="#555"/>')
        parts.append(_text(x, y + 20, number(value), "middle"))
    parts.append(_text(LEFT + inner_width / 2, HEIGHT - 10, series[0].x, "middle"))
    middle = TOP + inner_height / 2
    turned = f' transform="rotate(-90 16 {middle})"'
    parts.append(_text(16, middle, series[0].y, "middle", turned))
    for n, one in enumerate(series):
        colour = COLOURS[n % len(COLOURS)]
        points = [place(x, y) for x, y in sorted(one.points)]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in points]
        y_name = TOP + LINE_HEIGHT * (n + 1)
        parts.append(_text(WIDTH - RIGHT, y_name, one.name, "end", f' fill="{colour}"'))
    return "\n".join([*parts, "</svg>", ""])


def _axis(highest: float) -> list[float]:
    """Round values from 0 up to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / (TICKS - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(highest / step * 0.999) + 1)]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
