"""Training on a machine that is not this one: providers, jobs, and the ledger of what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .provider import Provider


def _runpod(**options: Any) -> Provider:
    from .runpod import connect

    return connect(**options)


def _ssh(**options: Any) -> Provider:
    from .ssh import connect

    return connect(**options)


def _local(**options: Any) -> Provider:
    from .local import connect

    return connect(**options)


# Adding a provider is a file here and a row there. Each takes the same keywords and uses its own:
# clock, transport ("rest" or "sdk", of runpod), host ("user@machine", of ssh).
PROVIDERS: dict[str, Callable[..., Provider]] = {
    "runpod": _runpod,
    "ssh": _ssh,
    "local": _local,
}
