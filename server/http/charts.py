"""Small pictures of numbers as SVG: drawn on the server, so that they need no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

Point = tuple[float, float]
Place = Callable[[Point], tuple[str, str]]

WIDTH, HEIGHT, MARGIN = 400.0, 170.0, 40.0
# As many points as there are pixels to tell them apart.
MAX_POINTS = 400


def line_chart(series: Mapping[str, Sequence[Point]], *, title: str) -> SafeString:
    """Return lines over a common step, with the range of both axes written beside them.

    ``series`` maps a name to its (step, value) points in the order of the steps. Every line has
    its own dash pattern, so that it can be told apart without colour.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return SafeString("")
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    span_x, span_y = (right - left) or 1.0, (high - low) or 1.0

    def place(point: Point) -> tuple[str, str]:
        x = MARGIN + (point[0] - left) / span_x * (WIDTH - MARGIN - 8)
        y = HEIGHT - 22 - (point[1] - low) / span_y * (HEIGHT - 22 - 10)
        return f"{x:.1f}", f"{y:.1f}"

    lines = format_html_join(
        "",
        '<polyline class="nf-line nf-line-{}" points="{}"/>{}',
        (
            (index % 4, _path(line, place), _dot(line, place, index))
            for index, line in enumerate(series.values())
            if line
        ),
    )
    return format_html(
        '<figure class="nf-chart"><figcaption>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<line class="nf-axis" x1="{}" y1="{}" x2="{}" y2="{}"/>'
        '<text x="0" y="14">{}</text><text x="0" y="{}">{}</text>'
        '<text x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>{}</svg>'
        "{}</figure>",
        title, f"{WIDTH:.0f}", f"{HEIGHT:.0f}", _describe(title, series),
        MARGIN, HEIGHT - 18, WIDTH - 8, HEIGHT - 18,
        _short(high), HEIGHT - 20, _short(low),
        MARGIN, HEIGHT - 4, _short(left), WIDTH - 8, HEIGHT - 4, _short(right),
        lines, _legend(series),
    )  # fmt: skip


def _path(line: Sequence[Point], place: Place) -> str:
    stride = max(1, len(line) // MAX_POINTS)
    kept = [*line[:-1:stride], line[-1]]
    return " ".join(",".join(place(point)) for point in kept)


def _dot(line: Sequence[Point], place: Place, index: int) -> SafeString:
    x, y = place(line[-1])
    return format_html('<circle class="nf-dot-{}" cx="{}" cy="{}" r="3"/>', index % 4, x, y)


def _legend(series: Mapping[str, Sequence[Point]]) -> SafeString:
    return format_html(
        '<ul class="nf-legend">{}</ul>',
        format_html_join(
            "",
            '<li><svg viewBox="0 0 24 6" aria-hidden="true"><line class="nf-line nf-line-{}"'
            ' x1="0" y1="3" x2="24" y2="3"/></svg>{} <b>{}</b></li>',
            (
                (index % 4, name.replace("_", " "), _short(line[-1][1]))
                for index, (name, line) in enumerate(series.items())
                if line
            ),
        ),
    )


def _describe(title: str, series: Mapping[str, Sequence[Point]]) -> str:
    ends = ", ".join(
        f"{name.replace('_', ' ')} from {_short(line[0][1])} to {_short(line[-1][1])}"
        for name, line in series.items()
        if line
    )
    return f"{title}: {ends}"


def _short(value: float) -> str:
    return f"{value:.3g}"
