"""Commands around a search: a first job file, what a run holds, what this machine has. None trains or measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import search
from search.complete import runs

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False, autocompletion=runs)]
Json = Annotated[bool, typer.Option("--json", metavar="", help="JSON, for programs.")]


def add_to(app: typer.Typer) -> None:
    """Make these functions commands of `app`."""
    app.callback()(options)
    for command in (report, status, init, schema, doctor):
        app.command()(command)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"prunefront {search.__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", metavar="", is_eager=True, callback=_say_version, help="Print the version.")
    ] = False,
) -> None:
    """What the program itself takes, before any command."""


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; RUN/report.html if left out.")
    ] = None,
    no_layer_times: Annotated[
        bool, typer.Option("--no-layer-times", metavar="", help="Do not time the layers of the front.")
    ] = False,
) -> None:
    """Write a run as one HTML file that opens anywhere.

    The front, each network's plan and how it was trained, the search's progress, and how latency was measured. On the
    machine that measured, the layers of the dense network and of the front are timed, some seconds.
    """
    from search.reporting.command import write_report

    write_report(run, out, time_layers=not no_layer_times, console=Console(highlight=False))


def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", metavar="", help="Look again and again until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Show how a search is doing, from another terminal.

    Whether it runs, what is done and what is left, and the best network so far. Nothing is locked or written.
    """
    from search.status_command import show_status

    show_status(run, watch=watch, as_json=as_json, console=Console(highlight=False))


def init(
    network: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="What builds the network, or a task.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The job file to write.")] = Path("job.yaml"),
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="1,3,32,32", help="Shape of one input; guessed if left out.")
    ] = None,
) -> None:
    """Write a commented job file for a network of your own.

    The function is called in the current folder; it returns a torch.nn.Module or a search.tasks.Task. For a module a
    second file is written, in which the data are to be filled in. Nothing is trained, measured or overwritten.
    """
    from search.init_command import init_job

    init_job(network, out=out, input_shape=input_shape, console=Console(highlight=False))


def schema() -> None:
    """Print the JSON schema of a job file, for editors.

    The first line of a job.yaml then is: # yaml-language-server: $schema=job.schema.json
    """
    import sys

    from search.job_schema import schema_text

    sys.stdout.write(schema_text())


def doctor(
    storage: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are to be kept.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Say what this machine has for a search, what it lacks, and what to do about it.

    Versions, devices, rigs, channel block, Ray, its token and storage. Nothing is measured or written. Exit code 2:
    something is missing without which no search runs.
    """
    from search.doctor import show_doctor

    code = show_doctor(storage, as_json=as_json, console=Console(highlight=False))
    if code:
        raise typer.Exit(code)
