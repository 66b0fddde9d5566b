"""The command line: parse, build the configuration, call one function.

`atlas --help` answers without importing torch: a command's module is loaded when it is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from atlas import __version__, progress
from atlas.errors import AtlasError, OptionError

# Command -> module in this folder, and the line that --help shows.
COMMANDS = {
    "quickstart": "Bundled studies -> dataset -> train -> evaluate -> report, in minutes.",
    "doctor": "What is installed, and which kernels run here.",
    "data": "Prepare and cache datasets.",
    "train": "Train a model on a dataset.",
    "evaluate": "Score a run on held-out studies beside linear baselines.",
    "validate": "Hold a run's latent space against its untrained model.",
    "bench": "Models beside linear peers on held-out studies.",
    "generate": "Decode a map for given metadata.",
    "counterfactual": "One study's code under other metadata.",
    "serve": "Open the viewer on a run.",
    "export": "A model as ONNX, or as a page that needs no server.",
    "remote": "Jobs of train --remote: their pods, logs, results and bills.",
}


class LazyGroup(click.Group):
    """A group whose commands live one a module and are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module; its command has the module's name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        return getattr(module, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-q", "--quiet", is_flag=True, help="Print results only.")
@click.option("-v", "--verbose", is_flag=True, help="Show the libraries' own messages too.")
@click.version_option(__version__, prog_name="atlas")
def atlas(quiet: bool, verbose: bool) -> None:
    """Conditional generative atlas of brain maps."""
    progress.quiet = quiet
    if not verbose:
        _silence()


def _silence() -> None:
    """Keep the libraries' notices away from people who did not ask for them."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    # rank_zero by name: importing Lightning sets the level of its parent anew.
    for name in ("pytorch_lightning.utilities.rank_zero", "nimare", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; a user's mistake is one line on standard error.

    Exit codes: 0, 1 (failed), 2 (usage).
    """
    # Threads that wait without spinning cost a tenth on an idle machine and save half on one where
    # something else runs, a browser say. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return atlas.main(args=arguments, prog_name="atlas")
    except AtlasError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)
    except OSError as error:  # a full disk, a folder that may not be written, a file in its place
        click.echo(
            f"Error: {error.filename or 'input/output'}: {error.strerror or error}", err=True
        )
        sys.exit(1)
