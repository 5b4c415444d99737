"""The command line: `pipeline run` and `pipeline plan`. What a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.redaction import redact


def _job_command(function: Callable[..., None]) -> Callable[..., None]:
    """The arguments that every command over a job takes, and errors as one short paragraph on stderr."""

    @click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))
    @click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
    @click.option("--conf", type=click.Path(path_type=Path), help="Folder of config groups, instead of conf/.")
    @click.option("--debug", is_flag=True, help="Show tracebacks and the workers' output.")
    @wraps(function)
    def command(**arguments: Any) -> None:
        try:
            function(**arguments)
        except PipelineError as error:
            if arguments["debug"]:
                raise
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if arguments["debug"]:
                raise
            click.echo(f"Error: {type(error).__name__}: {redact(str(error))} (--debug shows where)", err=True)
            sys.exit(1)

    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """GPT-2 as a batch system: every row of a dataset, exactly once."""


@main.command()
@_job_command
def run(job_file: Path, overrides: tuple[str, ...], conf: Path | None, debug: bool) -> None:
    """Run JOB, or go on where it stopped.

    KEY=VALUE changes an option of the job, such as score.stride=256 or model=gpt2-xl.

    Exit codes: 0 every row done; 1 the run failed; 2 the job or the command line is wrong; 3 some rows have an error.
    """
    from pipeline.compose import load_job
    from pipeline.progress import print_summary
    from pipeline.run import run_job

    outcome = run_job(load_job(job_file, overrides, conf), debug)
    print_summary(outcome.summary)
    sys.exit(outcome.exit_code)


@main.command()
@_job_command
def plan(job_file: Path, overrides: tuple[str, ...], conf: Path | None, debug: bool) -> None:
    """Show what JOB would do: parts, rows, tokens, output columns. Loads no weights, starts nothing, writes nothing."""
    from pipeline.compose import load_job
    from pipeline.preflight import prepare
    from pipeline.preview import describe

    click.echo(describe(prepare(load_job(job_file, overrides, conf))))
