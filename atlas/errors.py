"""The one exception that users are meant to see."""

from __future__ import annotations

import importlib
from types import ModuleType


class AtlasError(ValueError):
    """A mistake in the input: one line that names the file, row or option and what to do.

    The command line prints it without a traceback and exits with code 1.
    """


class OptionError(AtlasError):
    """A mistake in how a command was called; the command line exits with code 2."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Parameters
    ----------
    module : str
        Module to import, e.g. ``"tensorstore"``.
    extra : str
        Extra of this distribution that installs it, e.g. ``"data"``.

    Raises
    ------
    AtlasError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise AtlasError(
                f"{module} is not installed: pip install 'generative-brain-atlas[{extra}]'"
            ) from None
        raise
