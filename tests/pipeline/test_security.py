"""What a run reads can't run code, what a job says can't write elsewhere, and secrets are shown nowhere."""

import base64
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.errors import OutputRefused, PipelineError
from pipeline.preflight import prepare
from pipeline.redaction import redact
from pipeline.run import run_job
from pipeline.tasks.templates import Template
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter

SECRET = "hunter2+Sl/ash"
PLAIN = "hunter2"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Is made where code was run."""
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload works where it is unpickled"
    mark.rmdir()
    return mark


def plan(job: Path, *overrides: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(job), *overrides])


def refused(result: Result, *wanted: str) -> None:
    assert result.exit_code == 2, result.output
    assert all(each in result.stderr for each in wanted), result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_code_in_weights_is_never_run(write_job: JobWriter, model: Path, mark: Path, kind: str) -> None:
    (model / "model.safetensors").unlink()
    weights = {"wte.weight": torch.zeros(2), "x": Payload(mark)}
    file = model / "pytorch_model.bin"
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "zip")
    refused(plan(write_job(model={"path": str(model)})), "model.path", "pytorch_model.bin")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "generation_config.json"])
def test_a_pickle_in_place_of_a_json_file_is_refused(write_job: JobWriter, model: Path, mark: Path, name: str) -> None:
    (model / name).write_bytes(pickle.dumps(Payload(mark)))
    refused(plan(write_job(task="generate", model={"path": str(model)})), "model.path")
    assert not mark.exists()


def test_code_beside_a_checkpoint_is_never_run(write_job: JobWriter, model: Path, mark: Path) -> None:
    (model / "modeling.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling.Evil", "AutoModelForCausalLM": "modeling.Evil"}
    (model / "config.json").write_text(json.dumps({**config, "auto_map": auto_map, "trust_remote_code": True}))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["modeling.Evil", None]}, "tokenizer_class": "Evil"})
    )
    result = plan(write_job(model={"path": str(model)}))
    assert result.exit_code in {0, 2}, result.output
    assert not mark.exists()


def test_code_in_a_datasets_folder_is_never_run(write_job: JobWriter, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "dataset.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    pq.write_table(pa.table({"text": ["a"]}), folder / "data.parquet")
    job = write_job(input={"parquet": None, "dataset": {"path": str(folder)}})
    result = plan(job)
    assert not mark.exists()
    refused(plan(write_job(input={"parquet": None, "dataset": {"path": str(folder / "dataset.py")}})), "input.dataset")
    refused(plan(job, "++input.dataset.trust_remote_code=true"), "there is no option", "trust_remote_code")
    assert result.exit_code in {0, 2}
    assert not mark.exists()


def test_pickled_data_is_no_dataset(write_job: JobWriter, tmp_path: Path, mark: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(Payload(mark)))
    dataset = {"path": "pandas", "data_files": str(tmp_path / "data.pkl")}
    refused(plan(write_job(input={"parquet": None, "dataset": dataset})), "input.dataset pandas", "unpickles")
    assert not mark.exists()


def test_pickles_in_parquet_metadata_are_bytes(write_job: JobWriter, tmp_path: Path, mark: Path) -> None:
    pickled = pickle.dumps(Payload(mark))
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled}
    field = pa.field("text", pa.string(), metadata=extension)
    pandas = {"pandas": base64.b64encode(pickled), "huggingface": json.dumps({"info": {"features": {"x": "!!python"}}})}
    table = pa.Table.from_arrays([pa.array(["a"])], schema=pa.schema([field], metadata=pandas))
    pq.write_table(table, tmp_path / "wild.parquet")
    prepared = prepare(load_job(write_job(input={"parquet": str(tmp_path / "wild.parquet")})))
    prepared.store.create()
    worker = Worker(prepared.spec)
    worker.start()
    worker.run(next(iter(prepared.plan.parts())))
    assert not mark.exists()


@pytest.mark.parametrize(
    "line",
    [
        "x: !!python/object/apply:os.mkdir ['{mark}']",
        "x: !!python/object/new:os.mkdir ['{mark}']",
        "x: !!python/name:os.mkdir ''",
        "score: {{_target_: os.mkdir, path: '{mark}'}}",
        "hydra: {{searchpath: ['pkg://evil']}}",
        "defaults: [{{override hydra/launcher: basic}}]",
        'x: ${{oc.decode:\'__import__("os").mkdir("{mark}")\'}}',
    ],
)
def test_a_job_file_runs_no_code(
    write_job: JobWriter, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = write_job()
    job.write_text(job.read_text() + line.format(mark=mark) + "\n")
    refused(plan(job), "job.yaml")
    assert not mark.exists()


def test_hydras_own_settings_on_the_command_line_are_refused(write_job: JobWriter) -> None:
    for override in ("hydra.searchpath=[pkg://evil]", "+hydra.run.dir=x", "hydra/launcher=basic"):
        refused(plan(write_job(), override), f"override '{override}'", "no part of a job")


@pytest.mark.parametrize("text", ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>1000000000}", "{text:{text}}"])
def test_templates_reach_nothing_but_a_columns_text(write_job: JobWriter, text: str) -> None:
    with pytest.raises(ValueError, match="no plain name"):
        Template.parse(text)
    refused(plan(write_job(task="generate"), f"generate.template='{text}'"), "generate.template", "no plain name")
    if text == "{text:{text}}":
        return  # what a zero-shot template takes for words around the text
    labels = f"classify.zero_shot={{labels: [a, b], template: '{text} {{label}}'}}"
    refused(plan(write_job(task="classify"), labels), "classify.zero_shot.template", "must hold {text} once")


def test_what_a_rows_text_holds_is_not_read_as_a_template() -> None:
    assert Template.parse("{text}").filled({"text": "{text.__class__} {0}"}) == "{text.__class__} {0}"


def test_an_output_that_leads_into_the_input_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for path in (tmp_path / "link" / "out", tmp_path / "elsewhere" / ".." / "in" / "out", tmp_path / "link"):
        refused(plan(write_job(output={"path": str(path)})), "lies inside input.parquet")


@pytest.mark.parametrize("linked", ["_pipeline", "_pipeline/staging"])
def test_a_link_inside_the_output_is_refused_and_what_it_points_at_is_left(
    write_job: JobWriter, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    link = tmp_path / "out" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(OutputRefused, match=r"is a link to .*mine, and a run writes in its own folder alone"):
        run_job(load_job(write_job()))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("ray_local")
def test_names_in_a_job_name_no_files_outside_the_output(write_job: JobWriter, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    job = write_job(output={"path": str(tmp_path / "deep" / "out"), "prefix": "../../x/"}, input={"limit": 3})
    before = {*tmp_path.rglob("*")}
    run_job(load_job(job))
    made = {*tmp_path.rglob("*")} - before
    assert made
    assert all(each.is_relative_to(tmp_path / "deep" / "out") for each in made)


URIS = [
    (f"s3://key:{SECRET}@bucket/x?region=eu&secret_key={SECRET}", "s3://***@bucket/x?region=eu&secret_key=***"),
    (f"zip://a::https://u:{PLAIN}@h/x?sig={SECRET}", "zip://a::https://***@h/x?sig=***"),
    (f"simplecache::s3://u:{PLAIN}@b/x", "simplecache::s3://***@b/x"),
    (f"http://[::1]:80/x?token={PLAIN}", "http://[::1]:80/x?token=***"),
    (f"s3://u:{PLAIN}?#@b/x", "s3://***@b/x"),
    (f"can't open 's3://u:{PLAIN}@b/x', (s3://b?k={PLAIN})", "can't open 's3://***@b/x', (s3://b?k=***)"),
    ("http://h:80/a@b.parquet", "http://h:80/a@b.parquet"),
    ("s3://AKIAX:12/abcDEF@bucket/x", "s3://***@bucket/x"),
    ("https://u:pa'ss@h/x", "https://***@h/x"),
    ("hf://datasets/u/r@main/a.parquet", "hf://datasets/u/r@main/a.parquet"),
    ("/disk/a@b?c=d", "/disk/a@b?c=d"),
]


@pytest.mark.parametrize(("text", "shown"), URIS, ids=[shown for _, shown in URIS])
def test_uris_lose_what_may_be_secret_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown == redact(shown)
    assert str(PipelineError(text)) == shown


PLACES = [
    ("input.parquet", f"nope://user:{SECRET}@host/x?token={SECRET}"),
    ("input.parquet", f"zip://a.parquet::nope://user:{PLAIN}@host/x"),
    ("input.parquet", f"http://user:{PLAIN}@127.0.0.1:1/a.parquet?sig={SECRET}"),
    ("input.parquet", f"ftp://user:{PLAIN}@127.0.0.1:1/a.parquet"),
    ("input.parquet", f"s3://key:{SECRET}@bucket/a.parquet"),
    ("input.parquet", f"zip://a.parquet::file:///nowhere.zip?token={SECRET}"),
    ("output.path", f"nope://user:{SECRET}@host/x?token={SECRET}"),
    ("model.path", f"https://user:{SECRET}@host/x"),
    ("model.dtype", f"s3://user:{SECRET}@host/x"),
    ("score.stride", f"s3://user:{SECRET}@host/x?a={SECRET}"),
    ("nope", f"s3://user:{SECRET}@host/x"),
    ("cluster.address", f"s3://user:{SECRET}@127.0.0.1:1"),
]


@pytest.mark.parametrize(("key", "value"), PLACES, ids=[f"{key} {redact(value)}" for key, value in PLACES])
def test_no_refusal_shows_a_secret(write_job: JobWriter, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv("PLACE", value)
    section, _, name = key.partition(".")
    written = "${oc.env:PLACE}"
    for result in (
        plan(write_job(**{section: {name: value}} if name else {section: value})),
        plan(write_job(**{section: {name: written}} if name else {section: written})),
        plan(write_job(), f"{key}={written}"),
        plan(write_job(), f"{key}={value}"),
    ):
        refused(result)
        assert PLAIN not in result.output


def test_a_value_from_the_environment_is_shown_as_it_is_written(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    result = plan(write_job(score={"stride": "${oc.env:HF_TOKEN}"}))
    refused(result, "score.stride", "it is '${oc.env:HF_TOKEN}'")
    assert PLAIN not in result.output


@pytest.fixture
def signed(write_job: JobWriter, tmp_path: Path) -> Iterator[str]:
    """The URL of the first input file, with a signature, on a server of this machine."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path / "in"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.parquet?signature={SECRET}"
        server.shutdown()


@pytest.mark.usefixtures("ray_local")
def test_a_signed_url_is_read_by_the_workers_and_its_signature_is_in_no_file_and_no_output(
    write_job: JobWriter, signed: str, tmp_path: Path, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", signed)
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"{PLAIN}-of-{name}")
    job = write_job(input={"parquet": "${oc.env:PLACE}", "limit": 150})
    told = [CliRunner().invoke(main, [command, str(job)]) for command in ("plan", "run", "plan", "run")]
    assert [each.exit_code for each in told] == [0, 0, 0, 0], told[-1].output
    refusal = plan(job, "score.stride=7")
    refused(CliRunner().invoke(main, ["run", str(job), "score.stride=7"]), "holds another run")
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert pa.concat_tables([pq.read_table(part) for part in parts]).column("id").to_pylist() == list(range(150))
    shown = [each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file()]
    shown += [each.output.encode() for each in [*told, refusal]]
    assert len(shown) >= 2 + 3 + 5
    assert any(b"signature=***" in each for each in shown)
    assert not any(PLAIN.encode() in each for each in shown)


def test_an_error_that_nobody_foresaw_shows_no_secret_either(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: object) -> None:
        raise RuntimeError(f"can't connect to s3://user:{SECRET}@bucket/x")

    monkeypatch.setattr("pipeline.preflight.prepare", fail)
    result = plan(write_job())
    assert result.exit_code == 1
    assert result.stderr == "Error: RuntimeError: can't connect to s3://***@bucket/x (--debug shows where)\n"
