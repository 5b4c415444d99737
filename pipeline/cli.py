"""The command line: every command of `pipeline`. What a command needs is imported when it runs."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline import __version__, log
from pipeline.errors import PipelineError
from pipeline.redaction import redact


def _told(function: Callable[..., None]) -> Callable[..., None]:
    """Errors as one short paragraph on stderr; with --debug as they are."""

    @click.option("--debug", is_flag=True, help="Show tracebacks and the workers' output.")
    @wraps(function)
    def command(**arguments: Any) -> None:
        log.choose(arguments.pop("log_format", "auto"))
        try:
            function(**arguments)
        except PipelineError as error:
            if arguments["debug"]:
                raise
            log.fail(str(error), error.exit_code, error.event)
            sys.exit(error.exit_code)
        except Exception as error:
            if arguments["debug"]:
                raise
            log.fail(f"{type(error).__name__}: {redact(str(error))} (--debug shows where)", 1)
            sys.exit(1)

    return command


def _job_command(function: Callable[..., None]) -> Callable[..., None]:
    """The arguments that every command over a job takes, and errors as one short paragraph on stderr."""
    folder = click.option("--conf", type=click.Path(path_type=Path), help="Folder of config groups, instead of conf/.")
    as_of = click.option("--as-of", metavar="DATE", help="What ${now:…} in JOB stands for, instead of the present.")
    overrides = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
    return click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))(
        overrides(folder(as_of(_told(function))))
    )


_log_format = click.option(
    "--log-format",
    type=click.Choice(log.FORMATS),
    default="auto",
    show_default=True,
    help="What goes to stderr. auto: a live line on a terminal, else plain lines; json: one object a line.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """GPT-2 as a batch system: every row of a dataset, exactly once."""
    # The interpreter's last collections would go through all of torch, for a second or two.
    atexit.register(gc.freeze)


@main.command()
@_log_format
@_job_command
def run(job_file: Path, overrides: tuple[str, ...], conf: Path | None, as_of: str | None, debug: bool) -> None:
    """Run JOB, or go on where it stopped.

    KEY=VALUE changes an option of the job, such as score.stride=256 or model=gpt2-xl.

    Exit codes: 0 every row done; 1 the run failed; 2 the job or the command line is wrong; 3 some rows have an error.
    """
    from pipeline.compose import load_job
    from pipeline.progress import tell_summary
    from pipeline.run import run_job

    outcome = run_job(load_job(job_file, overrides, conf, as_of), debug)
    tell_summary(outcome.summary, outcome.exit_code)
    sys.exit(outcome.exit_code)


@main.command("retry-errors")
@_log_format
@_job_command
def retry_errors(job_file: Path, overrides: tuple[str, ...], conf: Path | None, as_of: str | None, debug: bool) -> None:
    """Do those rows of JOB's output again that carry an error; all other rows stay as they are.

    Only parts with such rows are written anew, each at once. Give the options that the run was begun with; those of
    the cluster may differ.

    Exit codes: as of run; 0 where no row carries an error any more.
    """
    from pipeline.compose import load_job
    from pipeline.progress import tell_summary
    from pipeline.run import run_job

    outcome = run_job(load_job(job_file, overrides, conf, as_of), debug, retry=True)
    tell_summary(outcome.summary, outcome.exit_code)
    sys.exit(outcome.exit_code)


@main.command()
@_job_command
def plan(job_file: Path, overrides: tuple[str, ...], conf: Path | None, as_of: str | None, debug: bool) -> None:
    """Show what JOB would do: parts, rows, tokens, output columns. Loads no weights, starts nothing, writes nothing."""
    from pipeline.compose import load_job
    from pipeline.preflight import prepare
    from pipeline.preview import describe

    click.echo(describe(prepare(load_job(job_file, overrides, conf, as_of))))


@main.command()
@_job_command
@click.option("--json", "as_json", is_flag=True, help="One object of named figures instead of lines.")
def verify(
    job_file: Path, overrides: tuple[str, ...], conf: Path | None, as_of: str | None, debug: bool, as_json: bool
) -> None:
    """Check that JOB's output folder holds every row of the input once, and every byte as it was committed.

    Reads all of the output, and changes nothing. Give the options that the run was begun with.

    Exit codes: 0 sound; 1 something was found; 2 the job is wrong, or the folder holds another run.
    """
    import json

    from pipeline.compose import load_job
    from pipeline.preflight import prepare
    from pipeline.verify import verify as check

    verdict = check(prepare(load_job(job_file, overrides, conf, as_of), to_run=False))
    click.echo(json.dumps(verdict.to_json(), indent=2) if as_json else str(verdict))
    sys.exit(0 if verdict.sound else 1)


@main.command()
@click.argument("job_file", metavar="[JOB]", required=False, type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--address", metavar="URL", help="The cluster's job server, such as http://head:8265.")
@click.option("--wait/--no-wait", default=True, help="Follow the run to its end, or print its submission id alone.")
@click.option("--attach", metavar="ID", help="Follow a run that was submitted before, instead of JOB.")
@click.option("--conf", type=click.Path(path_type=Path), help="Folder of config groups, instead of conf/.")
@click.option(
    "--working-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Folder that travels, instead of this one.",
)
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Files of the working directory that stay here.")
@click.option("--env", metavar="NAME", multiple=True, help="Environment variable that the run is given as it is here.")
@click.option(
    "--runtime-env", metavar="FILE", type=click.Path(path_type=Path), help="More for Ray, such as pip: [s3fs]."
)
@click.option("--submission-id", metavar="ID", help="Instead of one that Ray makes.")
@click.option("--as-of", metavar="DATE", help="What ${now:…} in JOB stands for, instead of when the run begins.")
@_log_format
@_told
def submit(
    job_file: Path | None,
    overrides: tuple[str, ...],
    address: str | None,
    wait: bool,
    attach: str | None,
    conf: Path | None,
    submission_id: str | None,
    debug: bool,
    **package: Any,
) -> None:
    """Run JOB on the Ray cluster behind URL, and follow it from here.

    The run belongs to the cluster: it goes on when this command ends. The job and the working directory travel; input,
    output and whatever begins with a dot do not.

    Exit codes: those of the run, as of run; 1 too where it is no longer followed; 2 where it was not submitted.
    """
    from pipeline.errors import JobError
    from pipeline.submission import Request, make_submission
    from pipeline.submit import Server

    if (job_file is None) == (attach is None):
        raise JobError("give either JOB or --attach ID")
    submission = (
        make_submission(job_file, overrides, conf, Request(**package, log_format=log.chosen(), debug=debug))
        if job_file
        else None
    )
    server = Server(address, debug)
    if submission is not None:
        attach = server.submit(submission, submission_id)
        log.tell(f"Submitted to {server.address}. {server.ways(attach)}", "submitted", submission_id=attach)
    if wait:
        sys.exit(server.follow(str(attach), lambda text: click.echo(text, nl=False)))
    click.echo(attach)


@main.command()
@click.argument("out", metavar="OUT")
@click.option("--watch", "watching", is_flag=True, help="Look every two seconds, until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="One object of named figures instead of lines.")
@_told
def status(out: str, watching: bool, as_json: bool, debug: bool) -> None:
    """Tell how far the run in folder OUT (a path or URI) is, from what stands in the folder alone.

    Exit codes: 0 told, whatever the state; 2 OUT holds no run.
    """
    from rich.console import Console

    from pipeline.status import as_json as json_line
    from pipeline.status import describe, read_status, watch

    tell = json_line if as_json else describe
    if watching:
        watch(out, tell, Console(soft_wrap=True))
    else:
        click.echo(tell(read_status(out)))


@main.command()
@click.argument("out", metavar="OUT")
@click.option("--repo", required=True, metavar="USER/NAME", help="The dataset repository; made where there is none.")
@click.option("--revision", metavar="BRANCH", help="A branch other than main; made where there is none.")
@click.option("--public", is_flag=True, help="Everybody may see the repository, instead of its owner.")
@click.option("--update", is_flag=True, help="Take the place of another run there, or a place beside others' files.")
@click.option("--message", help="Of the commit.")
@click.option(
    "--dry-run",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the files there; upload nothing.",
)
@_told
def push(
    out: str,
    repo: str,
    revision: str | None,
    public: bool,
    update: bool,
    message: str | None,
    folder: Path | None,
    debug: bool,
) -> None:
    """Upload the finished run in folder OUT (a path or URI) to the Hugging Face Hub, as a dataset with a card.

    The same command goes on with an upload that broke off. HF_ENDPOINT names another Hub than huggingface.co.

    Exit codes: 0 all of it is there; 1 it broke off; 2 OUT, the repository or the token won't do.
    """
    from pipeline.push import Target, write_folder
    from pipeline.push import push as upload
    from pipeline.push_progress import UploadWatch

    target = Target(repo, revision, public, update, message)
    if folder is not None:
        write_folder(out, target, folder, UploadWatch("written"))
        click.echo(f"written to {folder}, as it would be in {repo}; nothing was uploaded")
    else:
        click.echo(str(upload(out, target, UploadWatch("there"), quietly=not debug)))


@main.command()
@click.argument("out", metavar="OUT")
@click.option("--output", metavar="FILE", help="Where to write it, a path or URI. Default: OUT/_pipeline/report.html.")
@_told
def report(out: str, output: str | None, debug: bool) -> None:
    """Write one HTML file about the run in folder OUT (a path or URI): histograms, samples, errors, speed.

    The page loads nothing and runs no script. Of a run at a URI it is written to ./report.html.

    Exit codes: 0 written, whatever the run's state; 1 a part can't be read; 2 OUT holds no run.
    """
    from pipeline.report import write_report

    click.echo(write_report(out, output))
