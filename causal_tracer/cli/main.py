"""The command `causal-tracer` with its subcommands: trace, lens, patch, app, study, reproduce.

Exit status: 0 success · 2 a wrong option, setting or prompt · 1 any other known error · 130 interrupted. Results go to
standard output, everything else to standard error.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from causal_tracer.cli.lens import lens
from causal_tracer.cli.patch import patch
from causal_tracer.cli.reproduce import COMMANDS as REPRODUCTIONS
from causal_tracer.cli.study import study
from causal_tracer.cli.trace import trace
from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.version import __version__

INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def with_exit_status(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that an error is printed as one line and sets the exit status."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, TraceCancelled):
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except CausalTracerError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None

    return run


def causal_tracer(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find where a language model stores a fact, by causal tracing."""


def open_app(context: typer.Context) -> None:
    """Start the web app. "causal-tracer app --help" lists its options."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise CausalTracerError("The app needs Gradio, which is not installed: pip install 'gradio>=6.31,<7'")
    from causal_tracer.web.launch import main as launch

    raise typer.Exit(launch(context.args))


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    callback=causal_tracer,
)
app.command("trace")(with_exit_status(trace))
app.command("lens")(with_exit_status(lens))
app.command("patch")(with_exit_status(patch))
app.command(
    "app",
    # The app parses all options itself, also --help.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(with_exit_status(open_app))
app.command("study")(with_exit_status(study))
reproductions = typer.Typer(
    no_args_is_help=True, help="Run a paper's experiment and compare the results with the published numbers."
)
for name, reproduction in REPRODUCTIONS.items():
    reproductions.command(name)(with_exit_status(reproduction))
app.add_typer(reproductions, name="reproduce")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments after the program's name; None takes those of the process.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("causal_tracer").setLevel(logging.INFO)
    try:
        app(list(sys.argv[1:] if argv is None else argv), prog_name="causal-tracer")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
