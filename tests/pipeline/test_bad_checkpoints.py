"""A checkpoint that can't do the task is refused before anything starts, with what it lacks and what would help."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gpt2model import GPT2Config
from pipeline.cli import main
from tests.pipeline.answers import saved_model
from tests.pipeline.conftest import JobWriter


def refused(job: Path, *wanted: str) -> None:
    result = CliRunner().invoke(main, ["run", str(job)])
    assert result.exit_code == 2, result.output
    for each in wanted:
        assert each in result.stderr
    assert "Traceback" not in result.stderr


NEEDS = {
    "classify": ("GPT2ForSequenceClassification", "score.weight"),
    "ner": ("GPT2ForTokenClassification", "classifier.weight"),
    "qa": ("GPT2ForQuestionAnswering", "qa_outputs.weight"),
}


@pytest.fixture(autouse=True)
def forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)


@pytest.mark.parametrize("task", NEEDS)
def test_a_language_model_has_no_head_for_the_task(write_job: JobWriter, tmp_path: Path, task: str) -> None:
    architecture, weight = NEEDS[task]
    columns = {"columns": {"question": "text", "context": "text"}} if task == "qa" else {}
    job = write_job(task=task, input=columns)
    refused(job, f"task {task} needs a checkpoint of {architecture}", "GPT2LMHeadModel", weight)
    assert not (tmp_path / "out").exists()


def test_a_classifier_has_no_language_model_head(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    saved_model(
        "GPT2ForSequenceClassification", tmp_path / "classes", checkpoint, num_labels=3, tie_word_embeddings=False
    )
    refused(write_job(model={"path": str(tmp_path / "classes")}), "GPT2LMHeadModel", "GPT2ForSequenceClassification")


def test_labels_that_contradict_the_weights_are_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    saved_model("GPT2ForSequenceClassification", folder, checkpoint, num_labels=3)
    GPT2Config.from_pretrained(folder).replace(num_labels=5).save_pretrained(folder)
    refused(write_job(task="classify", model={"path": str(folder)}), "score.weight is [3, 32], not [5, 32]")


def test_one_label_named_twice_is_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    saved_model("GPT2ForSequenceClassification", folder, checkpoint, id2label={0: "a", 1: "b"})
    text = (folder / "config.json").read_text().replace('"1": "b"', '"1": "a"').replace('"b": 1', '"a": 1')
    (folder / "config.json").write_text(text)
    refused(write_job(task="classify", model={"path": str(folder)}), "id2label")


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        ({"task": "choose"}, ["choose reads prompt from column 'prompt'", "input.columns.prompt="]),
        (
            {"task": "choose", "input": {"columns": {"prompt": "text", "choices": "text"}}},
            ["'text'", "string and not lists of text"],
        ),
        ({"task": "embed", "embed": {"layer": 7}}, ["embed.layer 7", "2 blocks"]),
        ({"task": "embed", "embed": {"pooling": "max"}}, ["embed.pooling", "'mean' or 'last'"]),
        (
            {"task": "classify", "classify": {"zero_shot": {"labels": ["a"]}}},
            ["classify.zero_shot.labels", "at least 2"],
        ),
        (
            {"task": "classify", "classify": {"zero_shot": {"labels": ["a", "b"], "template": "x"}}},
            ["classify.zero_shot.template", "must hold {text} once"],
        ),
        ({"model": {"quantization": "int4"}}, ["model.quantization", "'nf4'", "'int4'"]),
    ],
)
def test_wrong_options_of_a_task_are_refused(
    write_job: JobWriter, sections: dict[str, Any], wanted: list[str], tmp_path: Path
) -> None:
    refused(write_job(**sections), *wanted)
    assert not (tmp_path / "out").exists()
