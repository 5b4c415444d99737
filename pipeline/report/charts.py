"""The drawings, by Altair, as SVG whose colours are the page's CSS variables: one drawing for light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from pipeline.figures import format_figure
from pipeline.report.histogram import Bar
from pipeline.report.measures import Labels, Numbers
from pipeline.report.values import cut

WIDTH, HEIGHT = 330, 150
"""Of a drawing, in CSS pixels as on a phone: on wider screens it grows with its card."""
MOST_BARS = 12
LONGEST_LABEL = 24
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
SHORT = "format(datum.value, abs(datum.value) < 1000 ? '~r' : '~s')"
"""Labels such as 150k; the format alone would make 0k of 0 and 500m of a half."""
ACCENT, INK, LINE = "var(--accent)", "var(--quiet)", "var(--line)"


def histogram(numbers: Numbers) -> str:
    """How the numbers are spread, as SVG."""
    if numbers.is_log:
        bars = [Bar(10**bar.start, 10**bar.stop, bar.count) for bar in numbers.logs.drawn().bars]
    else:
        bars = list(numbers.linear.drawn(whole=numbers.whole).bars)
    scale = alt.Scale(type="log" if numbers.is_log else "linear", domain=[bars[0].start, bars[-1].stop], nice=False)
    axis = alt.Axis(title=None, grid=False, tickCount=5, labelOverlap="greedy", **_format(bars))
    chart = alt.Chart(_data([{"start": bar.start, "stop": bar.stop, "rows": bar.count} for bar in bars]))
    drawn = chart.mark_bar(color=ACCENT, binSpacing=0.6).encode(
        x=alt.X("start:Q", scale=scale, axis=axis).bin("binned"),
        x2=alt.X2("stop:Q"),
        y=alt.Y("rows:Q", axis=_count_axis("count")),
    )
    return _svg(drawn, f"Histogram: {numbers.title}")


def labels(counted: Labels) -> str:
    """The most frequent labels, as SVG."""
    most = counted.counts.most_common(MOST_BARS)
    rows = [{"label": _distinct(place, name), "rows": count} for place, (name, count) in enumerate(most)]
    chart = alt.Chart(_data(rows)).encode(
        y=alt.Y("label:N", sort=None, axis=alt.Axis(title=None, ticks=False, domain=False, labelExpr=SHOWN)),
        x=alt.X("rows:Q", axis=None, scale=alt.Scale(domain=[0, 1.2 * most[0][1]], nice=False)),
    )
    bars = chart.mark_bar(color=ACCENT)
    counts = chart.mark_text(align="left", dx=4, color=INK).encode(text=alt.Text("rows:Q", format=","))
    return _svg((bars + counts).properties(height=22 * len(rows)), f"Counts: {counted.title}")


SHOWN = "substring(datum.value, 3)"


def _distinct(place: int, name: str) -> str:
    """Labels that are cut to the same text stay two bars: the number before is not shown."""
    return f"{place:02d} {cut(' '.join(name.split()) or '(empty)', LONGEST_LABEL)}"


def throughput(rates: Sequence[tuple[float, float, float]]) -> str:
    """Rows a second over time, as SVG; each entry is the seconds from, the seconds to, and the rate between."""
    unit, size = _unit(rates[-1][1])
    rows = [{"start": start / size, "stop": stop / size, "rate": rate} for start, stop, rate in rates]
    drawn = (
        alt.Chart(_data(rows))
        .mark_bar(color=ACCENT, binSpacing=0)
        .encode(
            x=_time_axis("start", unit, rates[-1][1] / size).bin("binned"),
            x2=alt.X2("stop:Q"),
            y=alt.Y("rate:Q", axis=_count_axis("rows a second", least=0.0)),
        )
    )
    return _svg(drawn, "Rows a second over time")


def progress(points: Sequence[tuple[float, int]]) -> str:
    """Rows that are done over time, as SVG; each entry is the seconds since the start and the rows then."""
    unit, size = _unit(points[-1][0])
    rows = [{"time": seconds / size, "rows": done} for seconds, done in points]
    drawn = (
        alt.Chart(_data(rows))
        .mark_area(color=ACCENT)
        .encode(
            x=_time_axis("time", unit, points[-1][0] / size),
            y=alt.Y("rows:Q", axis=_count_axis("rows")),
        )
    )
    return _svg(drawn, "Rows done over time")


def _unit(longest: float) -> tuple[str, float]:
    return ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)


def _time_axis(name: str, unit: str, longest: float) -> alt.X:
    axis = alt.Axis(title=f"{unit} since the start", grid=False, tickCount=5, labelOverlap="greedy")
    return alt.X(f"{name}:Q", axis=axis, scale=alt.Scale(domain=[0, longest], nice=False))


def _format(bars: Sequence[Bar]) -> dict[str, str]:
    """Thousands as k and millions as M, where there are many of them."""
    return {"labelExpr": SHORT} if max(abs(bars[0].start), abs(bars[-1].stop)) >= 10_000 else {}


def _count_axis(title: str, least: float = 1.0) -> alt.Axis:
    return alt.Axis(title=title, tickCount=4, tickMinStep=least, domain=False, ticks=False, labelExpr=SHORT)


def _data(rows: list[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=rows)


def _svg(chart: alt.Chart | alt.LayerChart, description: str) -> str:
    with io.StringIO() as stream:
        fit = alt.AutoSizeParams(type="fit-x", contains="padding")
        chart.properties(width=WIDTH, autosize=fit).configure(**STYLE).save(stream, format="svg")
        drawn = stream.getvalue()
    return _responsive(drawn, description)


def _responsive(drawn: str, description: str) -> str:
    """As wide as its card, whatever that is; told by its description and not mark by mark."""
    opening = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>")
    described = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return opening.sub(lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{described}">', drawn, count=1)


STYLE: Mapping[str, Any] = {
    "background": "transparent",
    "aria": False,
    "font": FONT,
    "view": alt.ViewConfig(stroke=None, continuousHeight=HEIGHT),
    "axis": alt.AxisConfig(
        labelColor=INK,
        titleColor=INK,
        gridColor=LINE,
        domainColor=LINE,
        tickColor=LINE,
        labelFontSize=11,
        titleFontSize=11,
        titleFontWeight="normal",
        labelLimit=160,
        labelSeparation=8,
    ),
    "text": alt.MarkConfig(fontSize=11),
}


def figures(numbers: Numbers) -> list[tuple[str, str]]:
    """The numbers that a histogram does not show."""
    held = numbers.linear
    told = {"mean": held.mean, "median": held.quantile(0.5), "lowest": held.low, "highest": held.high}
    return [(name, format_figure(float(f"{value:.4g}"))) for name, value in told.items()]
