"""The dataset card of a finished run: README.md with the metadata that the Hub and `datasets` read.

What stands between the two marks is the program's; what a person writes around them, and the metadata that it does not
know, stay when the card is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import JobError
from pipeline.figures import format_figure
from pipeline.finished import FinishedRun

NAME = "README.md"
LICENCE = {"license": "other", "license_name": "fill-this-in"}
"""What the Hub takes for a licence, until somebody names one."""
UNLICENSED = (
    "**Licence: fill this in.** Nobody has said yet on what terms this data may be used. Name the licence at the top "
    "of this file (`license:`, without `license_name:` where the Hub knows it); mind that of the input."
)
CATEGORIES = {
    "score": "text-generation",
    "generate": "text-generation",
    "classify": "text-classification",
    "ner": "token-classification",
    "qa": "question-answering",
    "choose": "multiple-choice",
    "embed": "feature-extraction",
}
"""The Hub's task category of each task."""
NOWHERE = "the-upload-has-not-finished/*.parquet"
"""The data of a card whose parts have not all arrived: `datasets` finds none there, and refuses to load."""
UNTOLD = frozenset({"rows", "rows with an error", "rows done by this command", "output"})
"""Figures of summary.json that the card tells otherwise, or that tell of one command and not of the rows."""
STALE = frozenset({"dataset_info"})
"""Metadata of a card that stood there before, which describes other rows than these."""
PLACES = frozenset({"path", "parquet", "data_files", "data_dir"})
"""Keys of a job that hold places; of one on this machine the card tells the last name alone."""
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")

_END = "<!-- pipeline push: end -->"
_BEGIN = re.compile(r"<!-- pipeline push: (?P<fingerprint>[0-9a-f]{64}) (?:finished|unfinished) -->")
_OURS = re.compile(rf"{_BEGIN.pattern}.*{re.escape(_END)}", re.DOTALL)
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def pushed_run(card: str | None) -> str | None:
    """The fingerprint of the run whose card stands somewhere; None where it is not one of ours."""
    found = _BEGIN.search(card or "")
    return None if found is None else found["fingerprint"]


def write_card(
    run: FinishedRun, repo: str, revision: str | None, pattern: str, finished: bool = True, standing: str | None = None
) -> str:
    """The whole text of README.md, over the card that is `standing` in its place.

    `pattern` is that of the parts' paths in the repository; a card that is not `finished` names no data.
    Raises JobError where the metadata of the standing card can't be read.
    """
    held, body = _taken_apart(standing or "")
    state = "finished" if finished else "unfinished"
    content = _body(run, repo, revision, _licensed(held), finished)
    ours = f"<!-- pipeline push: {run.fingerprint} {state} -->\n{content}\n{_END}"
    text = _OURS.sub(lambda _: ours, body) if _OURS.search(body) else "\n\n".join(filter(None, [ours, body.strip()]))
    metadata = _metadata(run, pattern if finished else NOWHERE, held)
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{text.strip()}\n"


def _taken_apart(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata, and the text below."""
    found = _METADATA.match(card)
    if found is None:
        return {}, card
    try:
        metadata = yaml.safe_load(found["yaml"]) or {}
    except yaml.YAMLError as error:
        raise JobError(
            f"the metadata at the top of the {NAME} that stands there is no YAML ({error}): mend it"
        ) from error
    if not isinstance(metadata, dict):
        raise JobError(f"the metadata at the top of the {NAME} that stands there is no mapping: mend it")
    return metadata, card[found.end() :]


def _licensed(held: Mapping[str, Any]) -> bool:
    """Whether somebody has named a licence."""
    return "license" in held and held.get("license_name") != LICENCE["license_name"]


def _metadata(run: FinishedRun, pattern: str, held: Mapping[str, Any]) -> dict[str, Any]:
    tasks = list(dict.fromkeys(step.task for step in steps_of(run)))
    categories = list(dict.fromkeys(CATEGORIES[task] for task in tasks if task in CATEGORIES))
    tags = held.get("tags") if isinstance(held.get("tags"), list) else None
    theirs = [tag for tag in tags or [] if tag not in CATEGORIES]
    return {
        **({} if "license" in held else LICENCE),
        **{name: value for name, value in held.items() if name not in STALE},
        "size_categories": [size_category(run.rows)],
        "task_categories": categories,
        "tags": list(dict.fromkeys([*theirs, "gpt2-pipeline", *tasks])),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}],
    }


def size_category(rows: int) -> str:
    """The Hub's name for so many rows, as in 10K<n<100K."""
    for power, name in enumerate(SIZES, start=3):
        if rows < 10**power:
            return f"n<{name}" if power == 3 else f"{SIZES[power - 4]}<n<{name}"
    return f"n>{SIZES[-1]}"


@dataclass(frozen=True, slots=True)
class Step:
    """One task over the rows, and the model that did it."""

    name: str | None
    task: str
    model: str
    revision: str | None
    dtype: str
    quantization: str


def steps_of(run: FinishedRun) -> list[Step]:
    """The tasks of a run: the steps of its job where it has such, else its one task."""
    steps = run.job.get("steps")
    if not isinstance(steps, dict):
        return [_step(run, None, run.job, run.identity, run.footer.revision)]
    identities = run.identity.get("steps")
    found = identities if isinstance(identities, dict) else {}
    given = {name: {key: value for key, value in step.items() if value is not None} for name, step in steps.items()}
    return [_step(run, name, {**run.job, **step}, found.get(name), None) for name, step in given.items()]


def _step(run: FinishedRun, name: str | None, job: Mapping[str, Any], identity: Any, revision: str | None) -> Step:
    model = job.get("model")
    options: Mapping[str, Any] = model if isinstance(model, dict) else {"path": model}
    held = identity.get("model") if isinstance(identity, dict) else None
    resolved: Mapping[str, Any] = held if isinstance(held, dict) else {}
    return Step(
        name=name,
        task=str(job.get("task")),
        model=str(_shown(options.get("path") or run.footer.model, place=True)),
        revision=resolved.get("revision") or revision or options.get("revision"),
        dtype=str(resolved.get("dtype") or run.footer.dtype),
        quantization=str(options.get("quantization") or "none"),
    )


def _body(run: FinishedRun, repo: str, revision: str | None, licensed: bool, finished: bool) -> str:
    sections = [
        f"# {repo.rpartition('/')[2]}",
        "" if finished else "**This upload has not finished: rows are missing.** The same `pipeline push` goes on.",
        _opening(run),
        "" if licensed else UNLICENSED,
        f"## Load\n\n{_loading(repo, revision)}",
        f"## Model\n\n{_models(run)}",
        f"## Statistics\n\n{_statistics(run)}",
        f"## Columns\n\n{_table(['column', 'type'], [[field.name, str(field.type)] for field in run.schema])}",
        f"## Job\n\n{_fenced('yaml', yaml.safe_dump(shown_job(run.job), sort_keys=False, allow_unicode=True))}",
    ]
    return "\n\n".join(filter(None, sections))


def _opening(run: FinishedRun) -> str:
    each = f"{run.rows:,} rows in {len(run.parts):,} Parquet file{'s' * (len(run.parts) != 1)}: every row of the input "
    each += "once, in its order, beside what the model said of it."
    if not run.errors:
        return f"{each} No row carries an error."
    reason = run.schema.names[-1]
    return f"{each} {run.errors:,} of them carry an error: nulls in the result columns, and the reason in `{reason}`."


def _loading(repo: str, revision: str | None) -> str:
    at = "" if revision is None else f", revision={revision!r}"
    return _fenced("python", f'from datasets import load_dataset\n\nrows = load_dataset("{repo}"{at}, split="train")\n')


def _models(run: FinishedRun) -> str:
    steps = steps_of(run)
    names = [[] if step.name is None else [step.name] for step in steps]
    head = [*(["step"] if names[0] else []), "task", "model", "revision", "dtype", "quantization"]
    rows = [
        [*name, step.task, step.model, step.revision or "-", step.dtype, step.quantization]
        for name, step in zip(names, steps, strict=True)
    ]
    return _table(head, rows)


def _statistics(run: FinishedRun) -> str:
    told: dict[str, float | int | str | None] = {"rows": run.rows, "rows with an error": run.errors}
    told |= {name: value for name, value in run.summary.items() if name not in UNTOLD and _plain(value)}
    figures = [[name, format_figure(value)] for name, value in told.items()]
    made = [["made by", f"gpt2-pipeline {run.footer.version}"], ["run", run.fingerprint[:10]]]
    return _table(["figure", "value"], [*figures, *made])


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str)


def shown_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job as others may see it: what decides the result, without the folders and addresses of where it ran."""
    steps = job.get("steps")
    used = {job.get("task")} | {step.get("task") for step in (steps.values() if isinstance(steps, dict) else ())}
    left_out = (CATEGORIES.keys() - used) | {"cluster"}
    shown = {key: _shown(value) for key, value in job.items() if key not in left_out}
    if isinstance(shown.get("output"), dict):
        shown["output"] = {key: value for key, value in shown["output"].items() if key != "path"}
    return shown


def _shown(value: Any, place: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _shown(each, place or key in PLACES) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each, place) for each in value]
    if place and isinstance(value, str) and value.startswith(("/", "~", "file:")):
        return f"…/{value.rstrip('/').rpartition('/')[2]}"
    return value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """Text that stays within its cell and is read as it stands."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", plain)


def _fenced(language: str, text: str) -> str:
    """A block whose fence is longer than any in the text."""
    longest = max((len(found) for found in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}{fence}"
