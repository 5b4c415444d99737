"""The templates in deploy/ parse, and name commands, options and fields that there are.

What checks them is not always there. These are looked for, and a test that misses one says so: `crontab` and
`systemd-analyze` on the path; KubeRay's helm-chart/kuberay-operator/crds in the folder that KUBERAY_CRDS names; the
interpreter of an environment with Airflow 3 in AIRFLOW_PYTHON.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli import main
from pipeline.compose import load_job

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "cluster.md"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
DAY = re.compile(r"\$+\(date \+[\\%]*F\)|\{\{ ds \}\}")
COMMAND = re.compile(r"(?:\bpipeline|(?P<script>\brun-job\.sh)) (?P<rest>[a-z-]+ [^\n]*|/[^\n]*)")
ENDS = re.compile(r"\s+(?:>>|\||&&|;|#).*|'$|`.*")


def joined(text: str) -> str:
    return re.sub(r"\\\n\s*", "", text)


def texts(file: Path) -> Iterator[str]:
    """The lines of a file that a shell gets; comments that stand alone are left out."""
    if file.suffix == ".py":
        tree = ast.parse(file.read_text())
        names = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "bash_command":
                yield eval(compile(ast.Expression(node.value), file.name, "eval"), {}, names)
    elif file.suffix == ".yaml":
        yield from (str(value) for key, value in pairs(yaml.safe_load(file.read_text())) if key == "entrypoint")
    elif file.suffix == ".md":
        yield from re.findall(r"^```(?:sh)?\n(.*?)^```", joined(file.read_text()), re.MULTILINE | re.DOTALL)
    else:
        yield re.sub(r"(?m)^\s*#.*$", "", joined(file.read_text()))


def pairs(content: Any) -> Iterator[tuple[str, Any]]:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield str(key), value
        if isinstance(value, dict | list):
            yield from pairs(value)


def commands(file: Path) -> list[list[str]]:
    """Every command line of `pipeline` in a file, as its arguments."""
    found = []
    for text in texts(file):
        for line in text.splitlines():
            match = COMMAND.search(DAY.sub("2026-11-24", line))
            if match:
                arguments = shlex.split(ENDS.sub("", match["rest"]), comments=True)
                found.append(["run", *arguments] if match["script"] else arguments)
    return found


RUNNING = ("crontab", "pipeline-nightly.service", "rayjob.yaml", "raycronjob.yaml", "airflow_dag.py")


@pytest.mark.parametrize("file", [*(DEPLOY / name for name in RUNNING), PAGE], ids=lambda file: file.name)
def test_every_command_is_one_that_the_command_line_takes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = commands(file)
    assert any(line[0] in {"run", "submit"} for line in lines)
    for line in lines:
        name, *arguments = line
        command = main.get_command(click.Context(main), name)
        assert command, line
        given = command.make_context(name, arguments).params
        if given.get("job_file"):
            job = ROOT / "jobs" / given["job_file"].name
            assert load_job(job, given["overrides"], ROOT / "conf").task


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_script_takes_row_errors_for_success(code: int, tmp_path: Path) -> None:
    stub = tmp_path / "pipeline"
    stub.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = [DEPLOY / "run-job.sh", "a b.yaml", "x=1"]
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if code == 3 else code)
    assert done.stdout == "run a b.yaml x=1\n"


def test_what_runs_every_night_is_what_runs_now() -> None:
    once, nightly = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("rayjob.yaml", "raycronjob.yaml"))
    assert nightly["spec"]["jobTemplate"] == once["spec"]


def test_the_image_is_made_of_what_there_is() -> None:
    text = joined((DEPLOY / "Dockerfile").read_text())
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    extras = re.search(r"'\.\[(.+)\]'", text)
    assert extras
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in declared for name in extras[1].split(","))


def strict(schema: Any) -> Any:
    """The schema, but that a field it does not know is an error, as it is to kubectl."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        changed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return changed


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_manifests_follow_kuberays_schemas(manifest: Path) -> None:
    if "KUBERAY_CRDS" not in os.environ:
        pytest.skip("KUBERAY_CRDS names no folder of KubeRay's helm-chart/kuberay-operator/crds")
    import jsonschema

    content = yaml.safe_load(manifest.read_text())
    file = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{content['kind'].lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"this KubeRay has no {content['kind']}: {file.name} is not there")
    versions = {each["name"]: each for each in yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]}
    schema = strict(versions[content["apiVersion"].partition("/")[2]]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft4Validator(schema).validate(content)
    content["spec"]["shutdownAfter"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate(content)


def test_cron_takes_the_table() -> None:
    if shutil.which("crontab") is None:
        pytest.skip("crontab is not here (apt-get install cron)")
    file = DEPLOY / "crontab"
    done = subprocess.run(["crontab", "-T", file], capture_output=True, text=True, check=False)
    if "invalid option" in done.stderr:  # Debian 12
        done = subprocess.run(["crontab", "-n", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cron_gets_no_bare_percent_sign() -> None:
    lines = [line for line in (DEPLOY / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"\w+=", line)]
    assert len(jobs) == 1
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in jobs[0].split()[:5])
    assert not re.search(r"(?<!\\)%", jobs[0])


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here (apt-get install systemd)")
    units = [tmp_path / name for name in ("pipeline-nightly.service", "pipeline-nightly.timer")]
    for unit in units:
        shutil.copy(DEPLOY / unit.name, unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if "pipeline-nightly" in line]
    assert (done.returncode, told) == (0, []), done.stderr
    calendar = re.search(r"^OnCalendar=(.+)$", units[1].read_text(), re.MULTILINE)
    assert calendar
    subprocess.run(["systemd-analyze", "calendar", calendar[1]], capture_output=True, check=True)


def test_airflow_imports_the_dag(tmp_path: Path) -> None:
    python = os.environ.get("AIRFLOW_PYTHON")
    if not python:
        pytest.skip("AIRFLOW_PYTHON names no interpreter of an environment with Airflow 3")
    (tmp_path / "dags").mkdir()
    shutil.copy(DEPLOY / "airflow_dag.py", tmp_path / "dags")
    told = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag(dag_folder={str(tmp_path / 'dags')!r})\n"
        "assert not bag.import_errors, bag.import_errors\n"
        "dag = bag.dags['pipeline_nightly']\n"
        "print(*(task.task_id for task in dag.topological_sort()))\n"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, "-c", told], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["score", "status"]
