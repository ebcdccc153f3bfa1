"""Points of two figures, their area a third, as SVG: drawn on the server, without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from server.http.pages import percent, size

Place = Callable[[float], str]

WIDTH, HEIGHT = 640.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 20.0, 20.0, 40.0
MOST_RADIUS, LEAST_RADIUS = 18.0, 3.0


@dataclass(frozen=True)
class Bubble:
    """One point: ``x`` bytes on a logarithmic axis, ``y`` a share, ``kind`` of 0, 1 and 2."""

    x: float
    y: float
    area: float
    kind: int
    name: str


def bubble_chart(
    points: Sequence[Bubble], *, title: str, kinds: Sequence[str], limit: float | None = None
) -> SafeString:
    """Return the points, the largest behind; ``limit`` is a line at that many bytes.

    A kind is told by outline and filling, not by colour alone; each point has its name as title.
    """
    if not points:
        return SafeString("")
    edges = [math.log(point.x) for point in points] + ([math.log(limit)] if limit else [])
    left, right = min(edges) - 0.1, max(edges) + 0.1
    low, high = min(point.y for point in points), max(point.y for point in points)
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    most = max(point.area for point in points)

    def across(value: float) -> str:
        share = (math.log(value) - left) / (right - left)
        return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"

    def up(value: float) -> str:
        share = (value - low) / ((high - low) or 1.0)
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    def radius(area: float) -> str:
        return f"{max(LEAST_RADIUS, MOST_RADIUS * math.sqrt(area / most)):.1f}"

    circles = format_html_join(
        "",
        '<circle class="nf-bubble nf-bubble-{}" cx="{}" cy="{}" r="{}"><title>{}: {}, {}</title>'
        "</circle>",
        (
            (p.kind, across(p.x), up(p.y), radius(p.area), p.name, size(round(p.x)), percent(p.y))
            for p in sorted(points, key=lambda point: (point.kind, -point.area))
        ),
    )
    budget = (
        format_html(
            '<line class="nf-limit" x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>'
            '<text x="{0}" y="12" text-anchor="middle">budget</text>',
            across(limit),
            TOP,
            HEIGHT - BOTTOM,
        )
        if limit
        else SafeString("")
    )
    return format_html(
        '<figure class="nf-chart"><figcaption>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<line class="nf-axis" x1="{}" y1="{}" x2="{}" y2="{}"/>'
        '<line class="nf-axis" x1="{}" y1="{}" x2="{}" y2="{}"/>{}{}{}{}</svg>{}</figure>',
        title, f"{WIDTH:.0f}", f"{HEIGHT:.0f}", _describe(points, title),
        LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM,
        LEFT, TOP, LEFT, HEIGHT - BOTTOM,
        _ticks_across(left, right, across), _ticks_up(low, high, up), budget, circles,
        _legend(kinds),
    )  # fmt: skip


def _ticks_across(left: float, right: float, across: Place) -> SafeString:
    values = [math.exp(left + (right - left) * step / 4) for step in range(5)]
    anchors = ("start", "middle", "middle", "middle", "end")
    return format_html_join(
        "",
        '<text x="{}" y="{}" text-anchor="{}">{}</text>',
        (
            (across(value), HEIGHT - BOTTOM + 18, anchor, size(round(value)))
            for value, anchor in zip(values, anchors, strict=True)
        ),
    )


def _ticks_up(low: float, high: float, up: Place) -> SafeString:
    return format_html_join(
        "",
        '<text x="{}" y="{}" text-anchor="end">{}</text>',
        (
            (LEFT - 6, up(low + (high - low) * step / 4), percent(low + (high - low) * step / 4))
            for step in range(5)
        ),
    )


def _legend(kinds: Sequence[str]) -> SafeString:
    return format_html(
        '<ul class="nf-legend">{}<li>area: multiply-adds</li></ul>',
        format_html_join(
            "",
            '<li><svg class="nf-mark" viewBox="0 0 12 12" aria-hidden="true">'
            '<circle class="nf-bubble nf-bubble-{}" cx="6" cy="6" r="5"/></svg>{}</li>',
            enumerate(kinds),
        ),
    )


def _describe(points: Sequence[Bubble], title: str) -> str:
    chosen = next((point for point in points if point.kind == 2), None)  # noqa: PLR2004
    end = f"; chosen: {chosen.name}, {size(round(chosen.x))}, {percent(chosen.y)}" if chosen else ""
    return f"{title}; {len(points)} candidates{end}"
