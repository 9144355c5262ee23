"""Plots of the result files as SVG: python benchmarks/plots.py writes docs/latency.svg and docs/accuracy.svg."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gpu_tables
from accuracy_tables import ACCURACY

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 250, 210  # of a panel
LEFT, BOTTOM, TOP = 44, 34, 26  # of a panel's axes
ORANGE, GREY, BLUE, GREEN = "#c2410c", "#78716c", "#1d4ed8", "#15803d"
PAPER, OURS = "the paper's method", "DeftONNX"
COLOURS = {"ORT best": ORANGE, "torch.compile": GREY, "dense16": BLUE, "density 0.5": GREEN, PAPER: ORANGE, OURS: BLUE}
NETWORKS = ("resnet50", "vgg16", "vit_b_16", "bert_base")
Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One plot: series by name, each a list of (x, y), joined by lines if `joined`."""

    title: str
    series: dict[str, list[Point]]
    x_label: str
    y_label: str
    x_scale: Callable[[float], float] = math.log2
    y_scale: Callable[[float], float] = math.log10
    joined: bool = True


def latency() -> list[Panel]:
    """Milliseconds a run against the batch, for the networks that several batches were measured of."""
    content = gpu_tables.load("models")
    panels = []
    for name in NETWORKS if content is not None else ():
        rows = sorted((row for row in content["rows"] if row["model"] == name), key=lambda row: row["batch"])
        series: dict[str, list[Point]] = {"ORT best": [], "torch.compile": [], "dense16": [], "density 0.5": []}
        for row in rows:
            times = [gpu_tables.best_stock(row)[1]]
            times += [
                gpu_tables.milliseconds(row, variant)
                for variant in (gpu_tables.COMPILED, gpu_tables.DENSE, gpu_tables.HALF)
            ]
            for points, ms in zip(series.values(), times, strict=True):
                if ms is not None:
                    points.append((row["batch"], ms))
        if len(rows) > 1:
            panels.append(Panel(f"{name} on {content['gpu']}", series, "batch", "ms"))
    return panels


def accuracy() -> list[Panel]:
    """Points of top-1 lost against the share of multiply-adds that is left, ours and the paper's."""
    rows = json.loads(ACCURACY.read_text(encoding="utf-8"))["rows"]
    panels = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        if len(own) < 2:
            continue
        series = {
            who: sorted((100 * row["ours"]["macs"], row[key]["loss"]) for row in own)
            for who, key in ((PAPER, "paper"), (OURS, "ours"))
        }
        panels.append(Panel(name, series, "multiply-adds left, %", "points lost", float, float, joined=False))
    return panels


def svg(panels: Sequence[Panel]) -> str:
    """The panels beside each other, with a legend below."""
    width, height = WIDTH * len(panels), HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({i * WIDTH} 0)">{_panel(panel)}</g>')
    for i, name in enumerate(panels[0].series):
        x = LEFT + 120 * i
        parts.append(f'<circle cx="{x}" cy="{HEIGHT + 8}" r="4" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 8}" y="{HEIGHT + 12}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> str:
    points = [point for series in panel.series.values() for point in series]
    x = _axis([p[0] for p in points], panel.x_scale, LEFT, WIDTH - 12)
    y = _axis([p[1] for p in points], panel.y_scale, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<text x="{LEFT}" y="14" font-weight="bold">{escape(panel.title)}</text>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 12}" fill="none" stroke="#57534e"/>',
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 4}" text-anchor="end">{escape(panel.x_label)}</text>',
        f'<text x="4" y="{TOP - 2}" font-size="9">{escape(panel.y_label)}</text>',
    ]
    for value in _ticks([p[0] for p in points], panel.x_scale is float):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{value:g}</text>')
    for value in _ticks([p[1] for p in points], panel.y_scale is float):
        parts.append(f'<text x="{LEFT - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - 12}" stroke="#e7e5e4"/>')
    for name, series in panel.series.items():
        colour = COLOURS[name]
        places = [(x(a), y(b)) for a, b in series]
        if panel.joined and places:
            line = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
    return "".join(parts)


def _axis(values: list[float], scale: Callable[[float], float], start: float, end: float) -> Callable[[float], float]:
    """From a value to its place between `start` and `end`, with a little room at both ends."""
    low, high = (scale(f(values)) for f in (min, max))
    room = 0.06 * (high - low or 1)
    return lambda value: start + (scale(value) - low + room) / (high - low + 2 * room) * (end - start)


def _ticks(values: list[float], linear: bool) -> list[float]:
    """Four round numbers along the values, or the values of a logarithmic axis where there are few."""
    low, high = min(values), max(values)
    if not linear:
        own = sorted(set(values))
        return own if len(own) <= 4 else [float(f"{low * (high / low) ** (i / 3):.1g}") for i in range(4)]
    step = float(f"{(high - low or 1) / 3:.1g}")
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


PLOTS: dict[str, Callable[[], list[Panel]]] = {"latency": latency, "accuracy": accuracy}


def write() -> None:
    """Write the plots that there are results for."""
    for name, make in PLOTS.items():
        panels: list[Any] = make()
        if panels:
            (ROOT / "docs" / f"{name}.svg").write_text(svg(panels), encoding="utf-8")


if __name__ == "__main__":
    write()
