"""The helpers that decide what the other tests run."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests import support

AXES = ("ab", range(3), "xyz", [True, False])


@pytest.mark.parametrize("soak", [False, True])
def test_pairs_meet_every_two_values(soak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "SOAK", soak)
    chosen, rows = support.pairs(*AXES), list(product(*AXES))
    assert set(chosen) <= set(rows)
    met, every = (
        {pair for row in part for pair in combinations(enumerate(row), 2)}
        for part in (chosen, rows)
    )
    assert met == every
    assert len(chosen) == 36 if soak else 9 <= len(chosen) < 15


def test_what_is_made_once_is_made_again_only_after_a_failure(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tries: list[bool] = []

    def make(folder) -> None:
        folder.mkdir()
        tries.append(len(tries) > 0)
        if not tries[-1]:
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        support.made_once(tmp_path_factory, "made_once", make)
    first, second = (support.made_once(tmp_path_factory, "made_once", make) for _ in range(2))
    assert first == second and first.is_dir() and tries == [False, True]
