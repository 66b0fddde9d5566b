"""Where the studies beside a model come from, and what is said where there are none."""

from __future__ import annotations

import importlib.util
import json
import threading
import time

import pytest

from atlas.data.sources import bundled as source
from atlas.errors import AtlasError
from atlas.explore.studies import read
from atlas.web import library
from atlas.web.library import Library, find


def opened(found: Library, then=None, busy=bool) -> Library:
    found.open(then, busy)
    for _ in range(2000):
        if found.ready:
            return found
        time.sleep(0.01)
    raise AssertionError("never read")


def test_a_named_dataset_comes_first(served_run, bundled, tmp_path):
    found = find(tmp_path, bundled.path)
    before = found.info
    assert before == {
        "count": len(bundled),
        "source": bundled.info["source"]["name"],
        "reason": None,
    }
    assert opened(found).info == before
    with pytest.raises(AtlasError, match="no such dataset folder"):
        find(served_run, tmp_path / "nothing")


def test_a_run_brings_its_own(served_run, bundled):
    assert opened(find(served_run, None)).studies.rows == read(bundled.path).rows


def test_a_run_without_one_says_so(tmp_path):
    info = opened(find(tmp_path, None)).info
    assert (info["count"], info["source"]) == (0, None)
    assert "give --data" in info["reason"]
    gone = {"dataset": {"path": str(tmp_path / "gone")}}
    (tmp_path / "environment.json").write_text(json.dumps(gone))
    assert "no such dataset folder" in opened(find(tmp_path, None)).info["reason"]


def test_beside_the_released_model_stand_nimares_studies(bundled):
    found = find(None, None)
    assert found.info["source"] == source.NAME
    assert found.info["count"] == source.glance() >= len(bundled)
    assert not found.ready  # nothing is read until somebody may want it


def test_without_nimare_there_are_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    reason = opened(find(None, None)).info["reason"]
    assert "pip install 'generative-brain-atlas[data]'" in reason
    assert "--data" in reason


def test_it_is_read_once_and_topics_wait_for_maps(bundled):
    reads, busy = [], threading.Event()

    def get():
        reads.append(1)
        return read(bundled.path)

    def topics(studies):
        yield []
        yield [[{"label": "a", "r": 1.0}]]

    busy.set()
    found = opened(Library(get), topics, busy.is_set)
    found.open(topics)
    time.sleep(0.1)
    assert found.topics is None
    busy.clear()
    for _ in range(200):
        if found.topics:
            break
        time.sleep(0.01)
    assert found.topics == [[{"label": "a", "r": 1.0}]]
    assert reads == [1]


def test_whatever_goes_wrong_ends_the_waiting(monkeypatch):
    found = opened(Library(lambda: {}["missing"]))
    assert "cannot be read: KeyError" in found.info["reason"]
    assert library.Library.none("because").info["reason"] == "because"
