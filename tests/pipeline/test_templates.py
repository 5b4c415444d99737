"""A template is filled as str.format fills it, and holds nothing but text and names of columns."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.errors import JobError
from pipeline.tasks.templates import Template
from tests.pipeline.conftest import JobWriter
from tests.pipeline.generating import Generating

FILLED = [
    ("{text}", "the cat"),
    ("Title: {title}\n\n{text}\nTL;DR:", "Title: A {word} in braces\n\nthe cat\nTL;DR:"),
    ("{title}{text}{title}", "A {word} in bracesthe catA {word} in braces"),
    ("{{{text}}}", "{the cat}"),
    ("{{}} {text} {{text}}", "{} the cat {text}"),
    ("{text:} and {text}", "the cat and the cat"),
    ("{größe}", "7"),
]
VALUES = {"text": "the cat", "title": "A {word} in braces", "größe": "7", "unused": "x"}


@pytest.mark.parametrize(("template", "expected"), FILLED)
def test_fields_are_filled_and_doubled_braces_are_braces(template: str, expected: str) -> None:
    assert Template.parse(template).filled(VALUES) == expected == template.format(**VALUES)


REFUSED = [
    ("nothing", "names no column"),
    ("", "names no column"),
    ("{{text}}", "names no column"),
    ("{}", r"\{\} is no plain name"),
    ("{0}", r"\{0\} is no plain name"),
    ("{text.upper}", r"\{text\.upper\} is no plain name"),
    ("{text[0]}", r"\{text\[0\]\} is no plain name"),
    ("{text!r}", r"\{text\} is no plain name"),
    ("{text:>10}", r"\{text\} is no plain name"),
    ("{text:{title}}", r"\{text\} is no plain name"),
    ("{ text }", r"\{ text \} is no plain name"),
    ("{two words}", r"\{two words\} is no plain name"),
    ("{text", "a brace that is meant as one is doubled"),
    ("text} {text}", "a brace that is meant as one is doubled"),
    ("{text}}", "a brace that is meant as one is doubled"),
    ("{text!}", "a brace that is meant as one is doubled"),
]


@pytest.mark.parametrize(("template", "wanted"), REFUSED, ids=[template for template, _ in REFUSED])
def test_what_is_no_plain_field_is_refused(template: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Template.parse(template)


NAMES = ["text", "title", "_x", "größe", "class"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LITERALS = ANY_TEXT.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
TEMPLATES = st.lists(st.one_of(LITERALS, st.sampled_from([f"{{{name}}}" for name in NAMES])), max_size=8)


@given(TEMPLATES, st.sampled_from(NAMES), st.fixed_dictionaries(dict.fromkeys(NAMES, ANY_TEXT)))
def test_a_valid_template_is_filled_as_str_format_fills_it(
    pieces: list[str], last: str, values: dict[str, str]
) -> None:
    template = "".join([*pieces, f"{{{last}}}"])
    assert Template.parse(template).filled(values) == template.format(**values)


@given(st.text(st.sampled_from("{}ab.[]!:0 "), max_size=12), st.fixed_dictionaries({"a": ANY_TEXT, "b": ANY_TEXT}))
def test_whatever_is_read_as_a_template_is_filled_as_str_format_fills_it(text: str, values: dict[str, str]) -> None:
    try:
        template = Template.parse(text)
    except ValueError:
        return
    named = {name: values.get(name, "x") for name in template.fields}
    assert template.filled(named) == text.format(**named)


@pytest.fixture(scope="module")
def generating(checkpoint: Path) -> Generating:
    return Generating(checkpoint)


def test_prompts_are_made_of_columns_of_text_numbers_and_booleans(generating: Generating) -> None:
    columns = {
        "title": pa.array(["a {text} b", "}", "", "x"]).dictionary_encode(),
        "text": pa.array(["cat", None, "dog", "sat"], pa.large_string()),
        "stars": pa.array([5, 3, None, -1], pa.int8()),
        "score": [0.5, 1.0, 2.0, math.inf],
        "good": [True, False, True, None],
    }
    template = "{title}: {text} ({stars}, {score}, {good}) {text}\n"
    task = generating.task(template=template, max_new_tokens=20)
    prepared = task.prepare(pa.table(columns))
    assert prepared.errors == {1: "text is null", 2: "stars is null", 3: "good is null"}
    assert [generating.tokenizer.decode(ids.tolist()) for ids in prepared.prompts] == [
        "a {text} b: cat (5, 0.5, True) cat\n"
    ]


def test_a_field_that_is_not_valid_utf8_is_that_rows_error(generating: Generating) -> None:
    broken = pa.array([b"cat", b"\xf0\x9f"], pa.binary()).view(pa.string())
    prepared = generating.task(template="{title} {text}").prepare(pa.table({"title": ["a", "b"], "text": broken}))
    assert prepared.errors == {1: "text is not valid UTF-8 at byte 0"}
    assert prepared.rows == (0,)


def test_a_template_may_not_name_what_a_column_gives_to_an_option(generating: Generating) -> None:
    with pytest.raises(JobError, match=r"generate\.template names \{seed\}, which input\.columns gives to"):
        generating.task("seed", template="{text} {seed}")
    assert generating.task(template="{text} {seed}").inputs.keys() == {"text", "seed"}


def invoke(job: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["plan", str(job), *arguments])


def test_columns_that_a_template_names_are_looked_for_when_planning(write_job: JobWriter) -> None:
    job = write_job(task="generate", generate={"template": "{id}: {text} [{tag}]"})
    assert invoke(job).exit_code == 0
    assert invoke(job, "generate.template='{id} {body}'", "input.columns.body=text").exit_code == 0


WRONG = [
    (["generate.template='{text} {title}'"], ["'title'", "the input lacks", "it has id, text, tag"]),
    (["generate.template='{text} {title}'", "input.columns.title=nope"], ["reads title from column 'nope'"]),
    (["generate.template='{id}'", "input.columns.text=text"], ["input.columns names 'text'", "it reads id"]),
    (["generate.template='{id.x}'"], ["generate.template", "{id.x} is no plain name"]),
    (["generate.template='{id'"], ["generate.template", "is doubled"]),
    (["generate.template='Hello'"], ["generate.template", "names no column"]),
]


@pytest.mark.parametrize(("overrides", "wanted"), WRONG, ids=[each[-1] for each, _ in WRONG])
def test_a_wrong_template_is_refused(write_job: JobWriter, overrides: list[str], wanted: list[str]) -> None:
    result = invoke(write_job(task="generate"), *overrides)
    assert result.exit_code == 2, result.output
    assert all(each in result.stderr for each in wanted), result.stderr
