"""What travels to a cluster, and what stays."""

import zipfile
from pathlib import Path, PurePosixPath

import pytest

from pipeline.compose import load_job
from pipeline.errors import JobError
from pipeline.package import LARGEST, pack, travelling
from pipeline.submission import Request, make_submission

STAYS = (
    ".git/config",
    ".env",
    "notes/.secret",
    "venv/pyvenv.cfg",
    "venv/lib/python/site.py",
    "out/score/_pipeline/plan.json",
    "out/score/readme.txt",
    "rows/a.parquet",
    "rows/b.CSV",
    "weights/model.safetensors",
    "build/left.py",
    "code/__pycache__/code.pyc",
    "project.egg-info/PKG-INFO",
    "pipeline/run.py",
    "gpt2model/model.py",
)
TRAVELS = ("code/labels.txt", "code/pipeline/mine.py", "conf/model/mine.yaml", "jobs/score.yaml", "weights/config.json")
MODEL = ("build/tiny/config.json", "build/tiny/model.safetensors")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (*STAYS, *TRAVELS, *MODEL):
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "project"


def test_code_settings_and_the_jobs_model_travel_and_nothing_else(project: Path) -> None:
    files = [file.as_posix() for file in travelling(project, [Path("build/tiny")])]
    assert sorted(files) == sorted((*TRAVELS, *MODEL))


@pytest.mark.parametrize("pattern", ["labels.txt", "code", "code/", "code/*"])
def test_more_can_be_left_out(project: Path, pattern: str) -> None:
    files = {file.as_posix() for file in travelling(project, [], [pattern])}
    assert files == {name for name in TRAVELS if name == "code/pipeline/mine.py" and pattern == "labels.txt"} | {
        name for name in TRAVELS if not name.startswith("code/")
    }


def test_the_same_content_is_the_same_package(project: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        pack(tmp_path / name, project, list(travelling(project, [])), PurePosixPath("_submitted/a.yaml"), "task: score")
        (project / "jobs" / "score.yaml").touch()
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.read("_submitted/a.yaml") == b"task: score"
        assert archive.read("conf/model/mine.yaml") == b"conf/model/mine.yaml"


def test_a_package_that_ray_would_not_take_is_refused_with_its_largest_file(project: Path, tmp_path: Path) -> None:
    with (project / "code" / "huge.txt").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(JobError, match=r"code/huge\.txt \(100 MiB\).*--exclude"):
        pack(tmp_path / "p.zip", project, list(travelling(project, [])), PurePosixPath("job.yaml"), "")


def test_a_job_travels_composed_with_its_secrets_in_the_package_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "conf" / "model").mkdir(parents=True)
    (elsewhere / "jobs").mkdir()
    (elsewhere / "conf" / "model" / "mine.yaml").write_text("path: build/tiny\n")
    job = elsewhere / "jobs" / "my job.yaml"
    job.write_text(
        "defaults: [{model: mine}, _self_]\ntask: score\ninput: {parquet: '${oc.env:ROWS}'}\noutput: {path: /out}\n"
    )
    monkeypatch.setenv("ROWS", "s3://key:first-secret@bucket/rows")
    overrides = ["output.path=s3://key:second-secret@bucket/out", "cluster.address=head:6379", "score.stride=7"]
    made = make_submission(job, overrides, None, Request(working_dir=project, env=["ROWS"]))
    assert "secret" not in f"{made.entrypoint} {made.metadata}"
    assert made.entrypoint.endswith("run '_submitted/my job.yaml'")
    assert "first-secret" not in made.job_text
    assert made.runtime_env["env_vars"]["ROWS"] == "s3://key:first-secret@bucket/rows"
    assert Path("build/tiny/model.safetensors") in made.files
    (tmp_path / "sent.yaml").write_text(made.job_text)
    sent = load_job(tmp_path / "sent.yaml")
    meant = load_job(job, overrides)
    assert sent.cluster.address == "auto"
    assert sent.model_copy(update={"cluster": meant.cluster}) == meant


def test_the_date_and_the_kind_of_log_go_to_the_run(project: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("task: score\nmodel: {path: gpt2}\ninput: {parquet: /rows}\noutput: {path: '/out/${now:%Y}'}\n")
    request = Request(working_dir=project, as_of="2026-01-02T03:04+01:00", log_format="json", debug=True)
    made = make_submission(job, [], None, request)
    assert made.entrypoint.endswith("job.yaml --as-of 2026-01-02T03:04+01:00 --log-format json --debug")
    assert made.metadata["output"] == "/out/2026"
    assert "${now:%Y}" in made.job_text
    with pytest.raises(JobError, match="--as-of 'never'"):
        make_submission(job, [], None, Request(working_dir=project, as_of="never"))


def test_more_of_rays_runtime_environment_is_joined_with_ours(project: Path, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(
        "pip: [s3fs]\nenv_vars: {A: '1', RAY_JOB_STOP_WAIT_TIME_S: '5'}\npy_modules: [x]\n"
    )
    job = tmp_path / "job.yaml"
    job.write_text("task: score\nmodel: {path: gpt2}\ninput: {parquet: /rows}\noutput: {path: /out}\n")
    made = make_submission(job, [], None, Request(working_dir=project, runtime_env=tmp_path / "env.yaml"))
    assert made.runtime_env["pip"] == ["s3fs"]
    assert made.runtime_env["env_vars"] == {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "5"}
    assert [Path(each).name for each in made.runtime_env["py_modules"]] == ["pipeline", "gpt2model", "x"]
