"""Job files for engines that run what one pod cannot: SkyPilot, dstack, sbatch.

They run beside this environment, not in it. Each file trains by the same torchrun command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atlas import __version__
from atlas import config as configuration
from atlas.errors import AtlasError

INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints/py311.txt -e '.[train,wandb]'"
)
BOARDS = {  # as SkyPilot calls them; dstack takes the family
    "A100 PCIe": "A100-80GB",
    "A100 SXM": "A100-80GB-SXM",
    "H100 PCIe": "H100",
    "H100 SXM": "H100-SXM",
}
PORT = 29500  # of torchrun's rendezvous, on the first node


@dataclass(frozen=True)
class Task:
    """What the file is to run. `gpus` are those of one node."""

    config: str
    overrides: tuple[str, ...]
    data: Path
    out: Path
    gpu: str = "RTX 4090"
    gpus: int = 1
    nodes: int = 1
    max_hours: float = 24.0

    @property
    def name(self) -> str:
        """Return a name that all three engines take: lower case letters, digits and dashes."""
        kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.out.name.lower())
        return "atlas-" + (kept.strip("-") or "run")


def write(engine: str, task: Task) -> str:
    """Return the job file; AtlasError where the configuration is wrong or cannot be run there."""
    configuration.load(task.config, task.overrides)
    if any(not text.isprintable() for text in (str(task.data), str(task.out), *task.overrides)):
        raise AtlasError("export: paths and overrides without line ends, please")
    return ENGINES[engine](task)


def torchrun(task: Task, data: str, out: str, rank: str, first: str) -> str:
    """Return the command of one node; `rank` and `first` are the engine's variables, unquoted."""
    launch = [f"--nproc-per-node={task.gpus}"]
    if task.nodes > 1:
        launch += [f"--nnodes={task.nodes}", f"--node-rank={rank}", f"--master-addr={first}",
                   f"--master-port={PORT}"]  # fmt: skip
    else:
        launch.append("--standalone")
    devices = () if task.gpus == 1 else (f"train.devices={task.gpus}",)
    arguments = ["train", task.config, *task.overrides, *devices]
    quoted = shlex.join([*arguments, "--data", data, "--out", out])
    return f".venv/bin/torchrun {' '.join(launch)} -m atlas.cli {quoted}"


def skypilot(task: Task) -> str:
    """Return a task of SkyPilot (docs.skypilot.co, SkyPilot YAML)."""
    rank, first = '"$SKYPILOT_NODE_RANK"', '"$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)"'
    run = torchrun(task, "data", "run", rank, first)
    how = f"sky launch -c {task.name} FILE, then rsync -a {task.name}:sky_workdir/run/ {task.out}/"
    return _yaml(task, {
        "name": task.name,
        "num_nodes": task.nodes,
        "resources": {
            "accelerators": {BOARDS.get(task.gpu, task.gpu.replace(" ", "")): task.gpus},
            "autostop": {"idle_minutes": 10, "down": True},
        },
        "workdir": ".",
        "file_mounts": {"~/sky_workdir/data": str(task.data)},
        "setup": INSTALL,
        "run": _limited(run, task),
    }, how)  # fmt: skip


def dstack(task: Task) -> str:
    """Return a task of dstack (dstack.ai, reference of .dstack.yml)."""
    run = torchrun(task, "data", "run", '"$DSTACK_NODE_RANK"', '"$DSTACK_MASTER_NODE_IP"')
    return _yaml(task, {
        "type": "task",
        "name": task.name,
        "nodes": task.nodes,
        "python": "3.11",
        "repos": ["."],
        "files": [f"{task.data}:data"],
        "commands": [INSTALL, run],
        "resources": {"gpu": {"name": BOARDS.get(task.gpu, task.gpu).split("-")[0].replace(" ", ""),
                              "count": task.gpus}},
        "max_duration": f"{max(int(task.max_hours * 60), 1)}m",
    }, f"dstack apply -f FILE; the run folder is ./run of node 0, for {task.out}")  # fmt: skip


def slurm(task: Task) -> str:
    """Return a script for sbatch."""
    minutes = max(int(task.max_hours * 60), 1)
    run = torchrun(task, str(task.data), str(task.out), '"$SLURM_NODEID"', '"$FIRST"')
    return f"""#!/bin/bash
# {_stamp(task)} Submit it in the checkout: sbatch FILE
#SBATCH --job-name={task.name}
#SBATCH --nodes={task.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={task.gpus}
#SBATCH --time={minutes}
#SBATCH --output=%x-%j.log
# Which of a cluster's GPUs: #SBATCH --constraint or --gres, as its own pages say ({task.gpu}).
set -euo pipefail
test -x .venv/bin/torchrun || {{ {INSTALL}; }}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export FIRST
srun bash -c {shlex.quote(run)}
"""


ENGINES: dict[str, Callable[[Task], str]] = {
    "skypilot": skypilot,
    "dstack": dstack,
    "slurm": slurm,
}


def _yaml(task: Task, tree: dict[str, Any], how: str) -> str:
    return f"# {_stamp(task)} {how}\n" + yaml.safe_dump(tree, sort_keys=False, width=1000)


def _limited(command: str, task: Task) -> str:
    return f"timeout {max(int(task.max_hours * 3600), 1)} {command}"


def _stamp(task: Task) -> str:
    return (
        f"Written by atlas {__version__}: {task.config} on {task.nodes} x {task.gpus} {task.gpu}."
    )
