"""The command line: every mistake of the user ends in one line that names the mend, exit code 2 or 3."""

from __future__ import annotations

import signal
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from search import cli_reading
from search.cli_options import Latency, NoAlign, Source, Speedup, duration, number, whole
from search.cli_reading import Json, Run
from search.complete import jobs_and_runs, models_and_runs, require_shell
from search.errors import UserError
from search.signals import INTERRUPTED

#: The base of Typer's complaints about a command line, wherever this version of Typer keeps it.
_UsageMistake: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
#: No line of an error is longer, whatever a file holds.
LONGEST = 1000

app = typer.Typer(
    name="prunefront",
    help="Search for the Pareto front of a network's pruned forms, by measured latency and accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def search(
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB.yaml|RUN",
            help="A job file, or a run folder (or its URL) to go on with.",
            autocompletion=jobs_and_runs,
        ),
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the new run folder.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="Where run folders are made, or copied to.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", parser=whole, help="Trials in all; may be more than before.")
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="10m", help="End the trials after this long: 90s, 10m, 1h30m.")
    ] = None,
    latency_ms: Latency = None,
    speedup: Speedup = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", parser=whole, help="Seed of the sampler and of the training.")
    ] = None,
    no_align: NoAlign = False,
    points: Annotated[
        Path | None, typer.Option(metavar="PLANS.json", help="Plans of your own, tried before all others.")
    ] = None,
    rig: Annotated[
        str | None, typer.Option(metavar="RIG", help="The rig that decides; the job's others are measured after it.")
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="accuracy and one or two of latency, latency:RIG, size, macs."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: local, auto or HOST:PORT.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", metavar="", help="Take a Ray that asks nobody for a token.")
    ] = False,
) -> None:
    """Search for the front of a job, or go on with a run.

    A run may be stopped at any moment, and goes on with `prunefront search RUN`; with another budget, rig or other
    objectives its finished trials count for those too, measured on the new rig where their networks are kept. It ends
    with the front as a table and as a picture.
    """
    seconds = None if time_budget is None else duration(time_budget)
    from search.search_command import run_or_resume

    run_or_resume(
        job,
        name=name,
        storage=storage,
        trials=trials,
        seconds=seconds,
        latency_ms=latency_ms,
        speedup=speedup,
        seed=seed,
        align=1 if no_align else None,
        points=points,
        rig=rig,
        objectives=objectives,
        address=address,
        insecure=insecure,
        console=Console(highlight=False),
    )


@app.command()
def front(run: Run, as_json: Json = False) -> None:
    """Show the front of a run.

    The dense network comes first, then the trials that no other beats in both accuracy and latency.
    """
    from search.commands import show_front

    show_front(run, as_json=as_json, console=Console(highlight=False))


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the network.", show_default=False)],
    latency_ms: Latency = None,
    speedup: Speedup = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="PP", parser=number, help="Largest accuracy drop, in percentage points.")
    ] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", parser=whole, help="A trial by its number.")] = None,
    int8: Annotated[bool, typer.Option("--int8", metavar="", help="Quantise it, calibrated on training data.")] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", metavar="", help="Write it in fp16, with float32 inputs and outputs.")
    ] = False,
) -> None:
    """Export one network of a run.

    Give exactly one of --latency-ms and --speedup (the most accurate network within it), --max-drop (the fastest
    that drops no more) and --trial. The network is measured once more before it is handed over. With --int8 or
    --fp16 trials are converted first, in the order of their fp32 accuracy: what is asked is asked of the file that is
    handed over. fp16 halves the file; a CPU gains no time by it.
    """
    from search.export_command import export_from_run

    export_from_run(
        run,
        out,
        latency_ms=latency_ms,
        speedup=speedup,
        max_drop=max_drop,
        trial=trial,
        int8=int8,
        fp16=fp16,
        console=Console(highlight=False),
    )


@app.command()
def prune(
    job: Source,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the network.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="plan.json", help="Sparsity by layer and structure, set by hand.")
    ] = None,
    compression_x: Annotated[
        float | None,
        typer.Option(metavar="X", parser=number, help="Dense prunable weights over kept ones, at least 1."),
    ] = None,
    mac_fraction: Annotated[
        float | None, typer.Option(metavar="F", parser=number, help="Share of the MACs that stays, in (0, 1].")
    ] = None,
    structures: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What a number may remove: unstructured,filter; else as in the job."),
    ] = None,
    no_align: NoAlign = False,
) -> None:
    """Prune one network, by one number or by a plan of your own.

    Give exactly one of --compression-x, --mac-fraction (the sparsity of every layer is found while it trains) and
    --plan. Convergence is shown iteration by iteration. Without Ray, by the same worker as in a search: with a run
    and the plan.json of one of its trials, that trial is reproduced alone.
    """
    from search.prune_command import prune_to_folder

    prune_to_folder(
        job,
        out,
        plan=plan,
        compression_x=compression_x,
        mac_fraction=mac_fraction,
        structures=structures,
        align=1 if no_align else None,
        console=Console(highlight=False),
    )


@app.command()
def measure(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx|RUN",
            help="A model, or a run to measure again.",
            show_default=False,
            autocompletion=models_and_runs,
        ),
    ],
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER.onnx", help="The model to compare with; itself if left out.")
    ] = None,
    rig: Annotated[
        str | None, typer.Option(metavar="RIG", help="Where to measure: onnxruntime-cpu, or the run's own.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", parser=whole, help="Threads of the runtime: 1, or as in the run.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", parser=whole, help="Samples in one inference: 1, or as in the run.")
    ] = None,
    all_trials: Annotated[
        bool, typer.Option("--all-trials", metavar="", help="Of a run, all complete trials, not the front alone.")
    ] = False,
    trial: Annotated[
        list[int] | None,
        typer.Option(metavar="N", parser=whole, help="Of a run, this trial alone; may be given again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the latency of an ONNX file, or of a run again.

    A file against another one: the two take turns on the same core and the speed-up is that of the pairs. A run: its
    dense network and its front, then and now, on this machine; nothing is trained, and the figures are kept in
    RUN/measured.
    """
    from search.measure_command import measure_target

    measure_target(
        target,
        against,
        rig=rig,
        threads=threads,
        batch=batch,
        all_trials=all_trials,
        trials=trial or (),
        as_json=as_json,
        console=Console(highlight=False),
    )


@app.command()
def profile(
    source: Source,
    every: Annotated[bool, typer.Option("--all", metavar="", help="Every layer, however small.")] = False,
    as_json: Json = False,
) -> None:
    """Show where the dense network's time goes, and whether the budget can be met.

    Latency by layer, the device's channel block, how well latency is predicted, and what the fastest network within
    reach takes. Nothing is trained and nothing is written. Exit code 3: the budget is out of reach.
    """
    from search.profile_command import profile_job

    profile_job(source, every=every, as_json=as_json, console=Console(highlight=False))


cli_reading.add_to(app)


def fail(message: str, code: int) -> int:
    """Print one line to standard error; returns the exit code."""
    # What a job file or a file's name holds may be made to move the cursor or to recolour a terminal.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if len(line) > LONGEST:  # the value is in the middle: what is wrong comes before it, the mend after
        line = f"{line[: LONGEST - 300]} ... {line[-300:]}"
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
    return code


@cache
def _commands() -> Any:
    """Read from the functions above once a process; it takes longer than most mistakes."""
    return typer.main.get_command(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. 2: a mistake to mend, 3: the budget cannot be met, 130: Ctrl-C."""
    from admm.errors import PruneError
    from evaluators.errors import EvaluationError

    try:
        require_shell(sys.argv[1:] if arguments is None else arguments)
        outcome: Any = _commands().main(arguments, prog_name="prunefront", standalone_mode=False)
    except UserError as error:
        return fail(str(error), error.exit_code)
    except (PruneError, EvaluationError) as error:
        return fail(str(error), 2)
    except _UsageMistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # `prunefront` alone: the help, not a complaint
            return 2
        context = getattr(error, "ctx", None)
        command = f"{context.info_name} " if context is not None and context.parent else ""
        return fail(f"{error.format_message().rstrip('.')}: see prunefront {command}--help", 2)
    except (KeyboardInterrupt, typer.Abort):
        outcome = INTERRUPTED
    except SystemExit as error:  # the command has said why
        return error.code if isinstance(error.code, int) else 1
    if outcome == INTERRUPTED:  # newer versions of Typer return it
        return fail("interrupted: nothing was written", INTERRUPTED)
    return outcome if isinstance(outcome, int) else 0


def main() -> None:
    """Entry point of the `prunefront` command."""
    code = run()
    if code == INTERRUPTED:  # what is ending already has no more to say of a further Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
