"""The time of day, as jobs and providers are given it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class SystemClock:
    """The machine's clock; it goes on while the machine sleeps."""

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(seconds, 0.0))
