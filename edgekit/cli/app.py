"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit._version import __version__
from edgekit.cli import bench, denoise, device, evaluate, finetune, host, lint, overview, profile, search

app = typer.Typer(
    name="edgekit",
    help="Take an image denoiser from training to a device, and prove that it arrived intact.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgekit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    host.compress,
    host.train,
    lint.lint,
    finetune.finetune,
    search.search,
    profile.profile,
    device.check,
    bench.bench,
    evaluate.evaluate,
    denoise.denoise,
    device.inspect,
    overview.models,
    overview.doctor,
):
    app.command()(command)
