"""A job with steps does several tasks over the same rows: one table, the values of single jobs, errors step by step."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner

from gpt2model import GPT2ForSequenceClassification, GPT2Model
from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.preflight import Prepared, prepare
from pipeline.preview import describe
from pipeline.run import resolved_job
from pipeline.steps import load_steps
from pipeline.tasks.generate import GenerateTask
from pipeline.tasks.ner import NerTask
from pipeline.tasks.rows import RowResults
from pipeline.verify import verify
from pipeline.worker import Worker
from tests.chaos.cases import LABELS
from tests.pipeline.answers import saved_model
from tests.pipeline.conftest import JobWriter

DRAWN = {"do_sample": True, "top_k": 0, "max_new_tokens": 8, "seed": 3, "token_ids": True}


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One checkpoint for each kind of head."""
    folder = tmp_path_factory.mktemp("models")
    saved_model("GPT2ForSequenceClassification", folder / "topic", checkpoint, **LABELS)
    saved_model("GPT2ForTokenClassification", folder / "names", checkpoint, **LABELS)
    return {"lm": str(checkpoint), "topic": str(folder / "topic"), "names": str(folder / "names")}


@pytest.fixture
def steps(models: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "fluency": {"task": "score", "score": {"token_logprobs": True}},
        "topic": {"task": "classify", "model": {"path": models["topic"]}, "classify": {"top_k": 2}},
        "names": {"task": "ner", "model": {"path": models["names"]}, "ner": {"overlap": 16}},
        "next": {"task": "generate", "generate": DRAWN},
    }


def run_here(job: Job) -> tuple[Prepared, Worker]:
    """Do all parts in this process."""
    prepared = prepare(job)
    prepared.store.create()
    prepared.store.write_record("plan.json", prepared.plan.to_json())
    worker = Worker(prepared.spec)
    worker.start()
    for part in prepared.plan.parts():
        worker.run(part)
    return prepared, worker


def table_of(prepared: Prepared) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(prepared.store.folder.child(part.name).path) for part in prepared.plan.parts()
    )


def with_steps(write_job: JobWriter, steps: Mapping[str, Any], **sections: Any) -> Job:
    return load_job(write_job(task=None, steps=steps, **sections))


def test_one_table_holds_the_values_of_the_single_jobs(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    together, _ = run_here(with_steps(write_job, steps, input={"limit": 250}))
    table = table_of(together)
    assert table.column("error").null_count == table.num_rows == 250
    expected = table.column_names[: len(["id", "text", "tag"])]
    for name, step in steps.items():
        task = step["task"]
        sections = {"task": task, task: step[task], "output": {"path": str(tmp_path / name)}, "input": {"limit": 250}}
        model = {"model": step["model"]} if "model" in step else {}
        alone, _ = run_here(load_job(write_job(**sections, **model)))
        single = table_of(alone)
        for column in single.column_names[3:-1]:
            expected.append(f"{name}_{column}")
            same(table.column(expected[-1]).to_pylist(), single.column(column).to_pylist())
    assert table.column_names == [*expected, "error"]


def same(found: Any, wanted: Any) -> None:
    """Equal, but for the last digits of floating-point numbers."""
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            same(found[key], value)
    else:
        assert found == wanted


def test_a_row_tells_its_errors_step_by_step_and_keeps_what_other_steps_found(
    write_job: JobWriter, models: dict[str, str], tmp_path: Path
) -> None:
    texts = ["the cat sat", None, "a dog", None]
    titles = ["one", "two", None, None]
    pq.write_table(pa.table({"text": texts, "title": titles}), tmp_path / "two.parquet")
    steps = {
        "fluency": {"task": "score"},
        "title": {"task": "classify", "model": {"path": models["topic"]}, "columns": {"text": "title"}},
    }
    job = with_steps(write_job, steps, input={"parquet": str(tmp_path / "two.parquet")})
    prepared, worker = run_here(job)
    rows = table_of(prepared).to_pylist()
    both = "fluency: text is null; title: text is null"
    assert [row["error"] for row in rows] == [None, "fluency: text is null", "title: text is null", both]
    assert [row["fluency_loglikelihood"] is None for row in rows] == [False, True, False, True]
    assert [row["title_label"] is None for row in rows] == [False, False, True, True]
    (report,) = prepared.store.committed(prepared.plan)
    assert report[1].errors == 3
    assert {figure.split(".")[0] for figure in report[1].figures} == {"fluency", "title"}
    assert verify(prepared).sound
    part = next(iter(prepared.plan.parts()))
    retried = worker.retry(Part(part.name, part.split, 0, 0, 4, retry=True))
    assert retried.counted == report[1]  # nothing is counted twice
    assert table_of(prepared).to_pylist() == rows


def test_a_retry_does_what_failed_again_and_nothing_else(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_steps(write_job, steps, input={"limit": 60})
    whole, _ = run_here(job)
    wanted = table_of(whole)
    ((part, counted),) = whole.store.committed(whole.plan)
    finish = NerTask.finish

    def failing(self: NerTask, prepared: Any, computed: Any) -> RowResults:
        result = finish(self, prepared, computed)
        nulls = [pa.nulls(len(column), column.type) for column in result.columns]
        return RowResults(nulls, dict.fromkeys(range(len(nulls[0])), "no luck; topic of the day"), {})

    with monkeypatch.context() as patch:
        patch.setattr(NerTask, "finish", failing)
        broken, worker = run_here(job)
        assert set(table_of(broken).column("error").to_pylist()) == {"names: no luck; topic of the day"}
    computed = []
    for step in worker.steps:
        monkeypatch.setattr(step.task, "prepare", watched(step.name, step.task.prepare, computed))
    again = worker.retry(replace(part, retry=True))
    assert table_of(broken).equals(wanted)
    assert again.counted == counted
    assert [(name, rows) for name, rows in computed if rows] == [("names", 60)]


def test_a_row_that_is_set_aside_in_a_retry_keeps_what_its_sound_steps_found(
    write_job: JobWriter, models: dict[str, str], tmp_path: Path
) -> None:
    pq.write_table(
        pa.table({"text": ["the cat sat"], "title": pa.array([None], pa.string())}), tmp_path / "one.parquet"
    )
    steps = {
        "fluency": {"task": "score"},
        "title": {"task": "classify", "model": {"path": models["topic"]}, "columns": {"text": "title"}},
    }
    prepared, worker = run_here(with_steps(write_job, steps, input={"parquet": str(tmp_path / "one.parquet")}))
    ((part, counted),) = prepared.store.committed(prepared.plan)
    (before,) = table_of(prepared).to_pylist()
    report = worker.retry(replace(part, retry=True, set_aside={0: "the worker died of it"}))
    (after,) = table_of(prepared).to_pylist()
    assert after == {**before, "error": "title: the worker died of it"}
    assert report.counted == counted
    assert verify(prepared).sound


def test_a_value_beside_the_error_of_its_step_is_a_damage(write_job: JobWriter, models: dict[str, str]) -> None:
    steps = {"fluency": {"task": "score"}, "topic": {"task": "classify", "model": {"path": models["topic"]}}}
    prepared, worker = run_here(with_steps(write_job, steps, input={"limit": 20}))
    ((part, _),) = prepared.store.committed(prepared.plan)
    table = table_of(prepared)
    for reason, damaged in (("topic: no luck", "topic_label"), ("fluency: no luck", "fluency_loglikelihood")):
        told = table.set_column(table.num_columns - 1, "error", pa.array([reason, *[None] * 19], pa.string()))
        with prepared.store.stage(part, prepared.plan.schema) as staged:
            staged.write(told)
            staged.commit(worker._footer(part, 20, 1, {}))
        (finding,) = verify(prepared).findings
        assert f"row 0 has an error, and a value in {damaged!r}" in str(finding)


def watched(name: str, prepare: Any, computed: list[tuple[str, int]]) -> Any:
    def counting(rows: pa.Table) -> Any:
        computed.append((name, rows.num_rows - rows.column(0).null_count))
        return prepare(rows)

    return counting


def test_a_step_that_raises_leaves_the_device_to_the_next_part(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.worker.GROUP_ROWS", 20)
    prepared = prepare(with_steps(write_job, steps))
    prepared.store.create()
    worker = Worker(prepared.spec)
    worker.start()
    part = next(iter(prepared.plan.parts()))
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(GenerateTask, "compute", raising)
            with pytest.raises(ZeroDivisionError) as held:
                worker.run(part)
        assert worker.run(part).counted.rows == 100
        assert held
    finally:
        gc.enable()


def raising(*_: object) -> None:
    raise ZeroDivisionError


def test_a_row_that_is_set_aside_has_nothing_of_any_step(
    write_job: JobWriter, steps: dict[str, dict[str, Any]]
) -> None:
    prepared = prepare(with_steps(write_job, steps))
    prepared.store.create()
    worker = Worker(prepared.spec)
    worker.start()
    part = next(iter(prepared.plan.parts()))
    report: PartReport = worker.run(Part(part.name, part.split, 0, 0, 100, {7: "the worker died of it"}))
    assert report.counted.errors == 1
    row = pq.read_table(prepared.store.folder.child(part.name).path).to_pylist()[7]
    assert row["error"] == "the worker died of it"
    assert {row[name] for name in row if name.startswith(tuple(f"{step}_" for step in steps))} == {None}


def test_heads_of_one_checkpoint_share_its_backbone_and_the_plan_says_what_that_takes(
    write_job: JobWriter, models: dict[str, str]
) -> None:
    steps = {
        "vector": {"task": "embed"},
        "fluency": {"task": "score"},
        "next": {"task": "generate"},
        "mood": {"task": "classify", "classify": {"zero_shot": {"labels": ["good", "bad"]}}},
        "topic": {"task": "classify", "model": {"path": models["topic"]}},
        "topic_vector": {"task": "embed", "model": {"path": models["topic"]}},
    }
    prepared = prepare(with_steps(write_job, steps))
    held = {step.name: step.model for step in load_steps(prepared.spec.steps, "cpu")}
    assert held["fluency"] is held["next"] is held["mood"]
    assert held["vector"] is held["fluency"].transformer
    assert isinstance(held["vector"], GPT2Model)
    assert isinstance(held["topic"], GPT2ForSequenceClassification)
    assert held["topic_vector"] is held["topic"].transformer
    # A move puts prepacked weights back.
    weights = {id(weight): weight.nbytes for model in held.values() for weight in model.float().parameters()}
    assert prepared.weights.bytes_in_memory == sum(weights.values())
    told = describe(prepared)
    assert (
        "one backbone serves vector and fluency and next and mood; one backbone serves topic and topic_vector" in told
    )
    assert not prepared.store.listing()


def test_models_that_no_worker_can_hold_are_refused(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_steps(write_job, steps)
    (tmp_path / "limit").write_text(str(prepare(job).weights.bytes_in_memory))
    monkeypatch.setattr("pipeline.memory.LIMIT", tmp_path / "limit")
    prepare(job)
    (tmp_path / "limit").write_text("300000")
    with pytest.raises(JobError, match=r"would hold 0.00 GiB of weights, and cpu has 0.00 GiB for it: hold them in 4"):
        prepare(job)
    assert prepare(job, to_run=False)


def test_a_shared_backbone_gives_the_values_of_the_head_by_itself(models: dict[str, str], write_job: JobWriter) -> None:
    steps = {
        "vector": {"task": "embed", "model": {"path": models["topic"]}},
        "topic": {"task": "classify", "model": {"path": models["topic"]}},
    }
    prepared = prepare(with_steps(write_job, steps))
    _, topic = load_steps(prepared.spec.steps, "cpu")
    alone = GPT2ForSequenceClassification.from_pretrained(models["topic"])
    ids = torch.tensor([[5, 9, 44, 3]])
    assert torch.equal(topic.model(ids).logits, alone(ids).logits)


def test_the_fingerprint_follows_every_step_and_not_the_cluster(
    write_job: JobWriter, steps: dict[str, dict[str, Any]]
) -> None:
    def fingerprint(steps: Mapping[str, Any], **sections: Any) -> str:
        return prepare(with_steps(write_job, steps, **sections)).plan.fingerprint

    plain = fingerprint(steps)
    assert fingerprint(steps, cluster={"tokens_per_batch": 512, "attempts": 1}) == plain
    others = [
        fingerprint({**steps, "next": {**steps["next"], "generate": {**DRAWN, "seed": 4}}}),
        fingerprint({**steps, "fluency": {**steps["fluency"], "prefix": "f_"}}),
        fingerprint({name: steps[name] for name in reversed(steps)}),
        fingerprint({name: steps[name] for name in list(steps)[:-1]}),
    ]
    assert len({plain, *others}) == 5


def test_another_step_is_told_key_by_key_when_the_folder_is_refused(
    write_job: JobWriter, steps: dict[str, dict[str, Any]]
) -> None:
    file = write_job(task=None, steps={"fluency": steps["fluency"]})
    prepared = prepare(load_job(file))
    prepared.store.create()
    prepared.store.write_record("plan.json", prepared.plan.to_json())
    done = CliRunner().invoke(main, ["plan", str(file), "steps.fluency.score.token_logprobs=false"])
    assert done.exit_code == 2
    assert "steps.fluency.score.token_logprobs" in done.stderr


def test_the_written_job_is_the_job(write_job: JobWriter, steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    job = with_steps(write_job, steps, output={"prefix": "new_"})
    written = resolved_job(job)
    assert list(written["steps"]) == list(steps)
    assert written["steps"]["topic"].keys() == {"task", "classify", "model", "columns", "prefix"}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(written, sort_keys=False))
    assert load_job(again).all_steps == job.all_steps
    assert prepare(job).plan.schema.names[3:5] == ["new_fluency_loglikelihood", "new_fluency_num_tokens"]


REFUSED: list[tuple[str, list[str]]] = [
    ("steps.fluency.task=scare", ["steps.fluency.task", "'scare'"]),
    ("steps.fluency.score.strid=3", ["steps.fluency.score.strid", "did you mean stride?"]),
    ("steps.fluency.scor={}", ["steps.fluency.scor", "did you mean score?"]),
    ("steps.fluency.ner.overlap=3", ["steps.fluency", "ner does nothing in a score step"]),
    ("steps.fluency.columns={words: tag}", ["steps.fluency.columns", "'words'", "it reads text"]),
    ("steps.fluency.columns={text: body}", ["steps.fluency.columns", "'body'", "steps.fluency.columns.text="]),
    ("input.columns.text=body", ["input.columns", "'body'", "it has id, text, tag"]),
    ("steps.fluency.model.path=./nowhere", ["steps.fluency.model.path ./nowhere"]),
    ("model.path=./nowhere", ["model.path ./nowhere"]),
    ("steps.topic.model.device=cuda", ["steps.topic.model.device is cuda", "model.device auto", "one device"]),
    ("steps.topic.prefix=fluency_", []),
    ("steps.9th={task: score}", ["steps.9th"]),
    ("task=score", ["task is score and there are steps as well"]),
    ("score.stride=3", ["score does nothing in a job with steps"]),
    ("steps.topic.model=null", ["model.path", "task classify needs a checkpoint of GPT2ForSequenceClassification"]),
    ("steps.twin={task: score, prefix: fluency_}", ["'fluency_loglikelihood'", "steps.NAME.prefix"]),
    ("steps.tag={task: score, prefix: ''}", []),
    (
        "steps={a: {task: score, columns: {}}, fluency: {columns: {}}, topic: {columns: {}}}",
        ["input.columns does nothing where every step has its own columns"],
    ),
]


@pytest.mark.parametrize(("override", "wanted"), REFUSED, ids=[override for override, _ in REFUSED])
def test_a_wrong_step_is_refused_with_key_value_and_remedy(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], tmp_path: Path, override: str, wanted: list[str]
) -> None:
    chosen = {name: steps[name] for name in ("fluency", "topic")}
    file = write_job(task=None, steps=chosen, input={"columns": {"text": "text"}})
    done = CliRunner().invoke(main, ["plan", str(file), override])
    assert done.exit_code == (2 if wanted else 0), done.output
    assert [each for each in wanted if each not in done.stderr] == []
    assert not (tmp_path / "out").exists()


def test_steps_without_any_model_are_refused(write_job: JobWriter) -> None:
    with pytest.raises(JobError, match=r"steps.fluency.model is missing; give it, or a model for all steps"):
        with_steps(write_job, {"fluency": {"task": "score"}}, model=None)


def test_a_group_fills_a_step_and_its_mistakes_are_told_with_their_line(
    write_job: JobWriter, models: dict[str, str], tmp_path: Path
) -> None:
    groups = tmp_path / "conf" / "model"
    groups.mkdir(parents=True)
    (groups / "topic.yaml").write_text(f"path: {models['topic']}\n")
    (groups / "wrong.yaml").write_text(f"path: {models['topic']}\ndtyp: float32\n")
    steps = {"fluency": {"task": "score"}, "topic": {"task": "classify"}}
    file = write_job(task=None, steps=steps, defaults=[{"model@steps.topic.model": "topic"}, "_self_"])
    job = load_job(file, conf=tmp_path / "conf")
    assert list(job.steps) == ["fluency", "topic"]
    assert job.all_steps[1].model.path == models["topic"]
    arguments = ["plan", str(file), "--conf", str(tmp_path / "conf"), "model@steps.topic.model=wrong"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "steps.topic.model.dtyp; did you mean dtype?" in done.stderr


@pytest.mark.usefixtures("ray_local")
def test_a_run_sums_up_each_step_and_its_status_names_them(
    write_job: JobWriter, steps: dict[str, dict[str, Any]], models: dict[str, str], tmp_path: Path
) -> None:
    file = write_job(task=None, steps=steps, input={"limit": 200})
    done = CliRunner().invoke(main, ["run", str(file)])
    assert done.exit_code == 0, done.output
    for wanted in ("fluency: scored tokens", "topic: tokens", "names: entities", "next: new tokens"):
        assert wanted in done.stdout
    status = json.loads(CliRunner().invoke(main, ["status", str(tmp_path / "out"), "--json"]).stdout)
    assert status["task"] == "score, classify, ner, generate"
    assert status["model"] == f"{models['lm']}, {models['topic']}, {models['names']}"
    assert (status["rows"], status["state"]) == (200, "finished")
