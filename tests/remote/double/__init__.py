"""The provider's local double: one state behind REST v2 and GraphQL, with its own clock and bill.

`Double(clock)` is the account. `double.client()` is an httpx client that calls it in this process;
`with double.serve() as url` opens it on loopback for the SDK and for other processes.
"""

from .clock import FakeClock
from .cloud import API_KEY, Cloud, Double
from .faults import KINDS, Fault, Faults
from .machines import Folder, Machine, SshMachine

__all__ = [
    "API_KEY",
    "KINDS",
    "Cloud",
    "Double",
    "FakeClock",
    "Fault",
    "Faults",
    "Folder",
    "Machine",
    "SshMachine",
]
