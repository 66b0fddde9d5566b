"""What can go wrong between here and a machine that is not this one. One clear line each."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.errors import AtlasError

from .provider import Pod


class ProviderDown(AtlasError):
    """The provider did not answer as it should; trying again later may help.

    Attributes
    ----------
    retry_after : seconds that the provider asks to wait, if it says so
    sent : the request had left, so that it may have been carried out all the same
    """

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = False):
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent


class KeyRefused(AtlasError):
    """The provider does not know the key, or the key may not do this."""


class NoBalance(AtlasError):
    """The account cannot pay for it; no other GPU will do either."""


class OutOfStock(AtlasError):
    """The GPU cannot be had now; another one, or another region, may."""


class PriceRose(OutOfStock):
    """The pod that came costs more than its offer said; `pod`, terminated already."""

    def __init__(self, message: str, *, pod: Pod):
        super().__init__(message)
        self.pod = pod


class ShellLost(AtlasError):
    """The way to the machine is cut. What runs there goes on."""


class CommandFailed(AtlasError):
    """A command on the machine ended with another code than 0.

    Attributes
    ----------
    code : its exit code
    stderr : its last lines
    """

    def __init__(self, argv: Sequence[str], code: int, stderr: str = ""):
        last = stderr.strip().splitlines()[-1:] or [f"exit code {code}"]
        super().__init__(f"{argv[0] if argv else 'command'} failed there: {last[0]}")
        self.code = code
        self.stderr = stderr
