"""Studies behind the page, read in the background: the first map does not wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import AtlasError

if TYPE_CHECKING:
    from atlas.explore.directions import Topics
    from atlas.explore.studies import Studies


class Library:
    """Studies that are read once somebody may want them.

    Parameters
    ----------
    read : callable
        Returns the studies; AtlasError says why there are none.
    count, source : int, str or None
        What can be said before they are read.

    Attributes
    ----------
    studies : Studies or None
        None until they are read, and where there are none.
    topics : list or None
        What the latent directions go along with, once that is computed.
    reason : str or None
        Why there are no studies.
    """

    def __init__(
        self, read: Callable[[], Studies], count: int = 0, source: str | None = None
    ) -> None:
        self._read, self._count, self._source = read, count, source
        self._start, self._done = threading.Lock(), threading.Event()
        self.studies: Studies | None = None
        self.topics: Topics | None = None
        self.reason: str | None = None

    @classmethod
    def none(cls, reason: str) -> Library:
        """Return a library without studies, and why."""
        library = cls(lambda: _refuse(reason))
        library.open(None)
        library._done.wait()
        return library

    @property
    def info(self) -> dict[str, Any]:
        """``count``, ``source`` and ``reason``, as /api/model shows them."""
        if self.studies is not None:
            return {
                "count": len(self.studies),
                "source": self.studies.source,
                "reason": None if len(self.studies) else "it holds no study",
            }
        if self.reason:
            return {"count": 0, "source": None, "reason": self.reason}
        return {"count": self._count, "source": self._source, "reason": None}

    @property
    def ready(self) -> bool:
        """Whether it is known what there is."""
        return self._done.is_set()

    def open(
        self, then: Callable[[Studies], Iterator[Topics]] | None, busy: Callable[[], bool] = bool
    ) -> None:
        """Begin to read, once; later calls do nothing.

        Parameters
        ----------
        then : callable, optional
            Finds the topics of the latent directions, in steps; the last one holds them.
        busy : callable
            Whether maps are being made, for which a step waits.
        """
        if self._start.acquire(blocking=False):
            threading.Thread(target=self._work, args=(then, busy), daemon=True).start()

    def _work(
        self, then: Callable[[Studies], Iterator[Topics]] | None, busy: Callable[[], bool]
    ) -> None:
        try:
            self.studies = self._read()
        except AtlasError as error:
            self.reason = str(error)
        except Exception as error:  # a thread must say why it ends, or everybody waits for it
            self.reason = f"the studies cannot be read: {type(error).__name__}: {error}"
        finally:
            self._done.set()
        for found in then(self.studies) if then and self.studies else ():
            self.topics = found or None
            while busy():
                time.sleep(0.05)


def _refuse(reason: str) -> Studies:
    raise AtlasError(reason)


def find(run: Path | None, data: Path | None) -> Library:
    """Choose the studies to show beside a model, without reading them yet.

    `data` where it is named, else the run's own dataset, else (for the released model) those that
    NiMARE carries.

    Raises
    ------
    AtlasError
        `data` is no dataset.
    """
    from atlas.evaluation.evaluate import dataset_folder

    if data is None and run is None:
        return _bundled()
    try:
        path = data or dataset_folder(run)  # type: ignore[arg-type]
        return _prepared(path)
    except AtlasError as error:
        if data is not None:
            raise
        return Library.none(str(error))


def _prepared(path: Path) -> Library:
    from atlas.data import dataset

    info = dataset.check(path)[0]
    count = info["coverage"]["n_peaks"]  # every study has a number of peaks

    def read() -> Studies:
        from atlas.explore import studies

        return studies.read(path)

    return Library(read, count, info["source"]["name"])


def _bundled() -> Library:
    from importlib.util import find_spec

    if find_spec("nimare") is None:
        return Library.none(
            "no studies: pip install 'generative-brain-atlas[data]' brings some, or name a "
            "dataset with --data"
        )

    def read() -> Studies:
        from atlas.explore import studies

        return studies.bundled()

    from atlas.data.sources import bundled

    return Library(read, bundled.glance(), bundled.NAME)
