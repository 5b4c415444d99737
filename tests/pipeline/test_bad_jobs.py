"""Every mistake in a job ends with exit code 2 and a message that names key, value and remedy; nothing is begun."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.errors import JobError
from tests.pipeline.conftest import JobWriter


@pytest.fixture
def forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def refused(result: Result, *wanted: str) -> None:
    assert result.exit_code == 2, result.output
    for each in wanted:
        assert each in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


OVERRIDES = [
    ("score.strid=3", ["score.strid", "did you mean stride?"]),
    ("score.stride=long", ["score.stride", "valid integer", "'long'"]),
    ("score.stride=0", ["score.stride", "greater than 0", "it is 0"]),
    ("score.stride=65", ["score.stride 65", "context of 64 tokens", "give 64 or less"]),
    ("score.window=slide", ["score.window", "'rolling' or 'sliding'", "'slide'"]),
    ("score.token_logprobs=perhaps", ["score.token_logprobs", "valid boolean", "'perhaps'"]),
    ("tusk=score", ["tusk", "did you mean task?"]),
    ("task=summarize", ["task", "'score'", "'summarize'"]),
    ("model.dtype=float8", ["model.dtype", "'float32'", "'float8'"]),
    ("model.device=cuda", ["model.device", "no CUDA device", "model.device=cpu"]),
    ("model.path=nowhere/at/all", ["model.path nowhere/at/all"]),
    ("model.path=./nowhere", ["model.path ./nowhere"]),
    ("model.revision=main", ["model.path", "revision"]),
    ("input.parquet=nowhere.parquet", ["input.parquet", "nowhere.parquet", "no such file or folder"]),
    ("input.parquet=nowhere/*.parquet", ["input.parquet", "nowhere/*.parquet", "no file matches"]),
    ("input.dataset.path=json", ["input", "either parquet or dataset", "both are given"]),
    ("input.columns.text=body", ["input.columns", "'body'", "it has id, text, tag", "input.columns.text="]),
    ("input.columns.text=id", ["input.columns", "'id'", "int64", "not text"]),
    ("input.columns.question=text", ["input.columns", "'question'", "it reads text"]),
    ("input.limit=0", ["input.limit", "greater than 0"]),
    ("output.columns=[id,nope]", ["output.columns", "'nope'", "it has id, text, tag"]),
    ("output.rows_per_part=many", ["output.rows_per_part", "'many'"]),
    ("output.path=/proc/nothing/here", ["output.path /proc/nothing/here", "can't write"]),
    ("cluster.workers.min=0", ["cluster.workers.min", "greater than 0"]),
    ("cluster.workers={min: 3, max: 2}", ["workers.max 2 is below workers.min 3"]),
    ("cluster.gpus_per_worker=1.5", ["gpus_per_worker 1.5", "fractions of one GPU"]),
    ("cluster.address=127.0.0.1:1", ["cluster.address 127.0.0.1:1", "nobody answers", "running Ray head"]),
    ("cluster.tokens_per_batch=lots", ["cluster.tokens_per_batch", "'lots'"]),
    ("stride", ["override 'stride'", "key=value"]),
]


@pytest.mark.parametrize(("override", "wanted"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
@pytest.mark.usefixtures("forbid_ray")
def test_a_wrong_override_is_refused(write_job: JobWriter, tmp_path: Path, override: str, wanted: list[str]) -> None:
    job = write_job()
    refused(invoke("run", job, override), *wanted)
    assert not (tmp_path / "out").exists()


GENERATE = [
    ("generate.max_new_token=3", ["generate.max_new_token", "did you mean max_new_tokens?"]),
    ("generate.max_new_tokens=0", ["generate.max_new_tokens", "greater than 0", "it is 0"]),
    ("generate.temperature=0", ["generate.temperature", "greater than 0", "it is 0"]),
    ("generate={do_sample: true, temperature: inf}", ["generate: temperature=inf must be a positive number"]),
    ("generate.top_k=-1", ["generate.top_k", "greater than or equal to 0", "it is -1"]),
    ("generate.top_p=1.5", ["generate.top_p", "less than or equal to 1", "it is 1.5"]),
    ("generate.seed=9223372036854775808", ["generate.seed", "less than 9223372036854775808"]),
    ("generate.stop=[a, '']", ["generate.stop", "an empty string is found everywhere: leave it out"]),
    ("generate.suppress=['']", ["generate.suppress", "an empty string is found everywhere: leave it out"]),
    ("generate.overflow=cut", ["generate.overflow", "'truncate_left' or 'error'", "'cut'"]),
    ("generate.early_stopping=perhaps", ["generate.early_stopping", "'perhaps'"]),
    ("generate.num_return_sequences=2", ["generate: num_return_sequences=2 needs do_sample=True or num_beams"]),
    ("generate={num_beams: 2, num_return_sequences: 3}", ["num_return_sequences=3 must be at most num_beams=2"]),
    ("generate={num_beams: 2, do_sample: true}", ["generate.do_sample with generate.num_beams", "one of the two"]),
    ("generate.template='{title}: {text}'", ["reads title from column 'title'", "it has id, text, tag"]),
    ("input.columns.max_new_tokens=text", ["'text'", "string and not whole numbers", "input.columns.max_new_tokens="]),
    ("input.columns.seed=nope", ["reads seed from column 'nope'", "it has id, text, tag"]),
    ("input.columns.temperature=id", ["'temperature', which generate does not read", "it reads text"]),
    ("cluster.sequences_at_once=0", ["cluster.sequences_at_once", "greater than 0"]),
    ("cluster.cache_tokens=lots", ["cluster.cache_tokens", "'lots'"]),
]


@pytest.mark.parametrize(("override", "wanted"), GENERATE, ids=[override for override, _ in GENERATE])
@pytest.mark.usefixtures("forbid_ray")
def test_a_wrong_override_of_generate_is_refused(
    write_job: JobWriter, tmp_path: Path, override: str, wanted: list[str]
) -> None:
    refused(invoke("run", write_job(task="generate"), override), *wanted)
    assert not (tmp_path / "out").exists()


FILES = [
    ("- a\n- b\n", ["mapping of options", "list"]),
    ("task: [score\n", ["not valid YAML", "line"]),
    ("task: score\nmodl: {path: x}\n", ["job.yaml:2", "modl", "did you mean model?"]),
    ("task: score\nmodel:\n  path: x\n  dtyp: float32\n", ["job.yaml:4", "model.dtyp", "did you mean dtype?"]),
    ("model: {path: x}\ninput: {parquet: y}\noutput: {path: z}\n", ["task is missing"]),
    ("task: score\nmodel: {path: x}\ninput: {}\noutput: {path: z}\n", ["job.yaml:3", "neither is given"]),
    ("task: score\nmodel: {path: x}\ninput: {parquet: y}\noutput: z\n", ["job.yaml:4", "output", "'z'"]),
    ("defaults: [{model: nope}]\ntask: score\n", ["model/nope"]),
    ("task: score\nmodel: {path: '${oc.env:NOT_SET_ANYWHERE}'}\n", ["NOT_SET_ANYWHERE"]),
]


@pytest.mark.parametrize(("text", "wanted"), FILES, ids=[wanted[-1] for _, wanted in FILES])
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, wanted: list[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    refused(invoke("run", file), *wanted)


def test_a_missing_job_file_is_refused(tmp_path: Path) -> None:
    refused(invoke("run", tmp_path / "nope.yaml"), "nope.yaml", "no such job file")


def test_a_mistake_in_a_config_group_is_placed_there(write_job: JobWriter, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"path: {checkpoint}\nrevison: main\n")
    job = write_job()
    text = job.read_text().replace(f"model:\n  path: {checkpoint}\n", "defaults: [{model: mine}, _self_]\n")
    job.write_text(text)
    refused(invoke("run", job, "--conf", tmp_path / "conf"), "mine.yaml:2", "model.revison", "did you mean revision?")


def test_a_result_column_that_the_input_has_is_refused_and_a_prefix_helps(write_job: JobWriter, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "perplexity": [1.0]}), tmp_path / "taken.parquet")
    job = write_job(input={"parquet": str(tmp_path / "taken.parquet")})
    refused(invoke("run", job), "'perplexity'", "output.prefix=score_")
    assert invoke("plan", job, "output.prefix=score_").exit_code == 0


def test_text_and_completion_at_once_are_refused(write_job: JobWriter) -> None:
    job = write_job(input={"columns": {"text": "text", "completion": "text"}})
    refused(invoke("run", job), "both text and prompt / completion")


def test_a_checkpoint_without_its_weights_is_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    weights["transformer.wpe.weight"] = np.zeros((32, 32), np.float32)
    save_file(weights, broken / "model.safetensors")
    refused(invoke("run", write_job(model={"path": str(broken)})), "model.path", "h.1.mlp.c_fc.weight", "wpe.weight")
    (broken / "model.safetensors").unlink()
    refused(invoke("run", write_job(model={"path": str(broken)})), "model.path", "model.safetensors")


def test_a_model_of_another_kind_is_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(invoke("run", write_job(model={"path": str(other)})), "model.path", "bert")


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    from gpt2model import GPT2Config, GPT2LMHeadModel

    small = tmp_path / "small"
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=1)).save_pretrained(small)
    for name in ("vocab.json", "merges.txt"):
        (small / name).write_bytes((checkpoint / name).read_bytes())
    refused(invoke("run", write_job(model={"path": str(small)})), "320 tokens", "300", "not of one checkpoint")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [("{", "Expecting property name"), ('{"eos_token_id": "the"}', "'the'"), ('{"eos_token_id": [[3]]}', "list")],
)
def test_a_generation_config_that_says_the_impossible_is_refused(
    write_job: JobWriter, checkpoint: Path, tmp_path: Path, content: str, wanted: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "generation_config.json").write_text(content)
    job = write_job(task="generate", model={"path": str(model)})
    refused(invoke("run", job), "model.path", "generation_config.json", wanted)


def test_a_dtype_that_this_cpu_does_not_survive_is_refused(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preflight.PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    refused(invoke("run", write_job(model={"dtype": "bfloat16"})), "model.dtype bfloat16", "model.dtype=float32")


def test_an_output_that_is_a_file_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(invoke("run", write_job(output={"path": str(tmp_path / "file" / "out")})), "is a file, not a folder")


def test_an_output_that_the_inputs_pattern_matches_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    pattern = str(tmp_path / "**" / "*.parquet")
    refused(invoke("run", write_job(input={"parquet": pattern})), "lies inside input.parquet")
    assert invoke("plan", write_job(input={"parquet": str(tmp_path / "in" / "*.parquet")})).exit_code == 0


def test_an_output_inside_the_input_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    refused(invoke("run", write_job(output={"path": str(tmp_path / "in" / "out")})), "lies inside input.parquet")


def test_help_and_a_wrong_option_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main; "
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0; "
        "heavy = {'torch', 'ray', 'datasets', 'hydra', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_looking_at_a_job_nor_doing_it_imports_torchs_compiler(write_job: JobWriter) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.compose import load_job; "
        "from pipeline.preflight import prepare; from pipeline.preview import describe; "
        "from pipeline.worker import Worker; prepared = prepare(load_job(Path(sys.argv[1]))); describe(prepared); "
        "prepared.store.create(); worker = Worker(prepared.spec); worker.start(); "
        "assert worker.run(next(prepared.plan.parts())).counted.rows == 100; "
        "heavy = {'torch._dynamo', 'sympy'} & set(sys.modules); assert not heavy, heavy"
    )
    generate = {"task": "generate", "generate": {"do_sample": True, "max_new_tokens": 2}}
    for job in (write_job(), write_job(**generate)):
        subprocess.run([sys.executable, "-c", code, str(job)], check=True)


def test_a_refusal_that_quotes_something_endless_keeps_its_beginning_and_the_remedy(write_job: JobWriter) -> None:
    result = invoke("run", write_job(), f"model.revision={'a' * 9000}")
    refused(result, "model.path", "aaa… ", "drop revision='aaa")
    assert len(result.stderr) < 1500
    assert len(str(JobError("give this or that, " * 1000 + "or nothing"))) < 4000
