"""What stands where in the report, and the HTML of it: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.figures import format_figure
from pipeline.report import charts, overview
from pipeline.report.gather import ENDS, SAMPLES, Findings, StepFindings, share
from pipeline.report.measures import Address, Directions, Extremes, Labels, Measure, Numbers
from pipeline.report.overview import Pair
from pipeline.report.rows import Shown, show
from pipeline.report.values import cut

HEADINGS = {
    "score": "How likely is each text?",
    "generate": "How does each text go on?",
    "classify": "What is each text?",
    "ner": "What is named in each text?",
    "qa": "What answers each question?",
    "choose": "Which choice fits best?",
    "embed": "Each text as a vector",
}
ENDS_OF = {
    "score": ("Most likely rows", "lowest perplexity", "Least likely rows", "highest perplexity"),
    "classify": ("Least certain rows", "lowest score", "Most certain rows", "highest score"),
    "qa": ("Least certain answers", "lowest score", "Most certain answers", "highest score"),
    "choose": ("Closest calls", "best score just above the next", "Clearest choices", "best score far above the next"),
}
VALUES = ("Lowest values", "by the predicted value", "Highest values", "by the predicted value")


@dataclass(frozen=True, slots=True)
class Card:
    """A drawing with what it does not show."""

    title: str
    drawing: Markup
    figures: Sequence[Pair]
    note: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows under a heading."""

    title: str
    note: str
    rows: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class Section:
    """A step of the run."""

    name: str
    heading: str
    about: str
    cards: Sequence[Card]
    rows: Sequence[Rows]


@dataclass(frozen=True, slots=True)
class KindOfError:
    """Errors of one kind, with examples."""

    text: str
    count: int
    share: str
    rows: Sequence[Shown]


def page(findings: Findings) -> str:
    """The whole report as HTML."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    speed = _speed(findings)
    return environment.get_template("page.html").render(
        style=Markup((folder / "page.css").read_text()),
        title=overview.title(findings),
        state=findings.folder.status.state,
        notices=overview.notices(findings),
        tiles=overview.tiles(findings),
        facts=overview.facts(findings),
        figures=overview.figures(findings),
        job=overview.job_text(findings),
        speed=speed,
        sections=[_section(findings, step) for step in findings.steps],
        errors=_errors(findings),
        error_kinds=len(findings.errors.kinds) if findings.errors else 0,
        made=overview.now(),
    )


def _speed(findings: Findings) -> Card | None:
    points = overview.progress(findings)
    if not points:
        return None
    rates = overview.rates(points)
    if rates:
        return Card("Rows a second", Markup(charts.throughput(rates)), [], WRITTEN)
    return Card("Rows done", Markup(charts.progress(points)), [], WRITTEN)


WRITTEN = "By when each part was written"


def _section(findings: Findings, step: StepFindings) -> Section:
    several = len(findings.steps) > 1
    kind = HEADINGS.get(step.step.task, step.step.task)
    about = " · ".join(str(each) for each in (step.step.task, step.step.model) if each)
    return Section(
        name=cut(step.step.name, 60) if several else "",
        heading=kind,
        about=cut(about, 120),
        cards=[card for measure in step.measures if (card := _card(measure, step.measures)) is not None],
        rows=[rows for rows in _rows(findings, step) if rows.rows],
    )


def _card(measure: Measure, others: Sequence[Measure]) -> Card | None:
    if isinstance(measure, Numbers) and measure.linear.count:
        told = [*charts.figures(measure), *_cosine(measure, others)]
        return Card(measure.title, Markup(charts.histogram(measure)), told, _left_out(measure))
    if isinstance(measure, Labels) and measure.counts:
        return Card(measure.title, Markup(charts.labels(measure)), [], _other_labels(measure))
    return None


def _cosine(measure: Numbers, others: Sequence[Measure]) -> list[Pair]:
    for other in others:
        if isinstance(other, Directions) and other.column == measure.column and other.mean_cosine is not None:
            return [("mean cosine of two rows", f"{other.mean_cosine:.3f}")]
    return []


def _left_out(numbers: Numbers) -> str:
    drawn = numbers.logs.drawn() if numbers.is_log else numbers.linear.drawn(whole=numbers.whole)
    sides = ((drawn.below, "lower"), (drawn.above, "higher"), (numbers.unbounded, "infinite or not a number"))
    told = ", ".join(f"{count:,} {side}" for count, side in sides if count)
    return ". ".join(
        each for each in (numbers.is_log * "Logarithmic scale", f"Not drawn: {told}" if told else "") if each
    )


def _other_labels(labels: Labels) -> str:
    shown = sum(count for _, count in labels.counts.most_common(charts.MOST_BARS))
    names = len(labels.counts) - charts.MOST_BARS
    rest = labels.counts.total() + labels.others - shown
    more = "at least " if labels.others else ""
    return f"And {more}{names:,} more, {rest:,} times in all" if names > 0 else ""


def _rows(findings: Findings, step: StepFindings) -> list[Rows]:
    steps = len(findings.steps)
    found = []
    for measure in step.measures:
        if isinstance(measure, Extremes):
            titles = VALUES if measure.column == step.columns.get("value") else ENDS_OF[step.step.task]
            low, low_note, high, high_note = titles
            lowest = [place for _, place in measure.lowest]
            # Of few rows both ends are the same ones.
            highest = [place for _, place in measure.highest if place not in lowest]
            found += [_shown(findings, step, low, low_note, lowest), _shown(findings, step, high, high_note, highest)]
    samples = findings.samples[: share(SAMPLES, steps)]
    note = f"{len(samples)} of {format_figure(findings.totals.rows)}, the same ones in every report"
    return [*found, _shown(findings, step, "Random rows", note, samples)]


def _shown(findings: Findings, step: StepFindings, title: str, note: str, places: Sequence[Address]) -> Rows:
    return Rows(title, note, [show(findings, step, place) for place in places[: max(ENDS, SAMPLES)]])


def _errors(findings: Findings) -> list[KindOfError]:
    if findings.errors is None or not findings.steps:
        return []
    return [
        KindOfError(
            kind.text,
            kind.count,
            overview.percent(kind.count, findings.totals.rows),
            [show(findings, _of(findings, kind.text), place) for place in kind.examples],
        )
        for kind in findings.errors.shown
    ]


def _of(findings: Findings, error: str) -> StepFindings:
    """The step that an error names, as in `topic: text is null`; of one step that one."""
    named = error.partition(": ")[0]
    return next((step for step in findings.steps if step.step.name == named), findings.steps[0])
