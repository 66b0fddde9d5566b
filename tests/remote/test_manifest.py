"""What is hashed, and the still picture that a changing run is pulled from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from atlas.remote.pod import files, manifest


def make(root: Path) -> Path:
    run = root / "run" / "a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"one")
    (run / "metrics.csv").write_text("epoch\n1\n")
    (run / "report").mkdir()
    (run / "report" / "index.html").write_text("<p>")
    (run / ".part12.metrics.csv").write_text("half")
    (run / "latest").symlink_to(run / "metrics.csv")
    return run


def test_the_whole_run_without_links_and_half_written_files(tmp_path: Path) -> None:
    make(tmp_path)
    found = manifest.whole(tmp_path, "run/a")
    assert [*found] == ["checkpoints/last.ckpt", "metrics.csv", "report/index.html"]
    assert found["metrics.csv"] == {
        "sha256": hashlib.sha256(b"epoch\n1\n").hexdigest(),
        "bytes": 8,
    }
    assert json.loads(manifest.write(tmp_path, found)) == found
    assert json.loads((tmp_path / files.MANIFEST).read_text()) == found
    assert manifest.whole(tmp_path, "run/none") == {}


def test_a_snapshot_stays_while_the_run_goes_on(tmp_path: Path) -> None:
    run = make(tmp_path)
    found = manifest.snapshot(tmp_path, "run/a")
    assert [*found] == ["checkpoints/last.ckpt", "metrics.csv"]
    before = manifest.signature(tmp_path, "run/a")
    (run / "new").write_bytes(b"two!")
    os.replace(run / "new", run / "checkpoints" / "last.ckpt")
    still = tmp_path / files.SNAPSHOT / "checkpoints" / "last.ckpt"
    assert manifest.sha256(still) == found["checkpoints/last.ckpt"]["sha256"]
    assert manifest.signature(tmp_path, "run/a") != before
    again = manifest.snapshot(tmp_path, "run/a")
    assert again["checkpoints/last.ckpt"]["bytes"] == 4


def test_nothing_there_yet(tmp_path: Path) -> None:
    assert manifest.signature(tmp_path, "run/a") == ""
    assert manifest.snapshot(tmp_path, "run/a") == {}
