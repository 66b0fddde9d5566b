"""atlas remote export: files that their engines can read, with the same command in each."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import one_line_error, run_atlas

ARGUMENTS = ("smoke", "train.lr=1e-3", "--data", "/d/my data", "--out", "runs/Big_One", "--gpus", 4)


def exported(engine: str, *more: object) -> str:
    done = run_atlas("remote", "export", "--format", engine, *ARGUMENTS, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skypilot() -> None:
    tree = yaml.safe_load(exported("skypilot", "--nodes", 2, "--gpu", "A100 SXM"))
    assert tree["num_nodes"] == 2 and tree["workdir"] == "."
    assert tree["resources"]["accelerators"] == {"A100-80GB-SXM": 4}
    assert tree["resources"]["autostop"]["down"] is True
    assert tree["file_mounts"] == {"~/sky_workdir/data": "/d/my data"}
    assert "--nnodes=2" in tree["run"] and "$SKYPILOT_NODE_RANK" in tree["run"]
    assert {"name", "setup", "run"} <= tree.keys()


def test_dstack() -> None:
    tree = yaml.safe_load(exported("dstack", "--max-hours", 2, "--gpu", "H100 PCIe"))
    assert (tree["type"], tree["nodes"], tree["max_duration"]) == ("task", 1, "120m")
    assert tree["resources"]["gpu"] == {"name": "H100", "count": 4}
    assert "--standalone" in tree["commands"][-1] and tree["files"] == ["/d/my data:data"]


def test_slurm_is_bash_and_its_arguments_arrive(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    done = run_atlas("remote", "export", "--format", "slurm", *ARGUMENTS, "--nodes", 2,
                     "--file", script, "--json")  # fmt: skip
    assert json.loads(done.stdout)["file"] == str(script)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "#SBATCH --nodes=2\n" in text and "#SBATCH --gpus-per-node=4\n" in text
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    fakes = {
        bin_folder / "torchrun": 'printf "%s\\n" "$@"',
        tmp_path / "srun": '"$@"',
        tmp_path / "scontrol": "echo node7; echo node8",
    }
    for path, body in fakes.items():
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    ran = subprocess.run(
        ["bash", script.name], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "x", "SLURM_NODEID": "1"},
    )  # fmt: skip
    said = ran.stdout.splitlines()
    assert {"--node-rank=1", "--master-addr=node7", "--nproc-per-node=4"} <= {*said}
    assert said[said.index("train") :] == [
        "train", "smoke", "train.lr=1e-3", "train.devices=4",
        "--data", "/d/my data", "--out", "runs/Big_One",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["skypilot", "dstack"])
def test_the_command_survives_the_shell(engine: str) -> None:
    tree = yaml.safe_load(exported(engine))
    words = shlex.split(tree["run"] if engine == "skypilot" else tree["commands"][-1])
    assert words[words.index("train") + 1 : words.index("--data")] == [
        "smoke", "train.lr=1e-3", "train.devices=4",
    ]  # fmt: skip


def test_a_wrong_configuration_is_one_line() -> None:
    done = run_atlas(
        "remote", "export", "nothing", "--format", "slurm", "--data", "d", "--out", "o"
    )
    assert "no such file" in one_line_error(done)
