"""The pages say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.compose import load_job

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_options_is_the_one_the_models_write() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "reference.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "options.md").read_text() == done.stdout


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda job: job.name)
def test_every_job_file_is_valid(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_job(job).all_steps


@pytest.mark.parametrize("group", ["model", "cluster"])
def test_every_config_group_composes(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
        job = load_job(ROOT / "jobs" / "score.yaml", [f"{group}={file.stem}"])
        for key, value in yaml.safe_load(file.read_text()).items():
            assert getattr(getattr(job, group), key) == value


def test_the_readmes_commands_and_overrides_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^pipeline (?:run|plan) (jobs/\S+\.yaml)([^#\n]*)", text, re.MULTILINE)
    assert commands
    for job, overrides in commands:
        load_job(ROOT / job, overrides.split())


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
