"""Write bench/results/gpu_steps.json: the time of one training step by GPU and configuration.

`python -m bench.gpu_steps` counts, on the CPU, what one step of each configuration does: the
floating-point operations of its convolutions and matrix products, the bytes that its operators read
and write one after another, and how many there are. On a GPU's data sheet these give a time:

    sum over operators of max(flops / (SHARE * peak), bytes / (SHARE * bandwidth)) + LAUNCH
    + the time in which one CPU core makes the batch, measured here

It is an estimate that says so ("computed"). A row that `python -m bench.gpu_steps --measure` writes
on a machine with that GPU says "measured" and is never replaced by a computed one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atlas import config
from atlas.data.dataset import Dataset
from atlas.data.prepare import Settings, prepare
from atlas.models import build
from atlas.training.datamodule import AtlasDataModule
from atlas.training.module import AtlasModule

OUT = Path(__file__).parent / "results" / "gpu_steps.json"
SHARE = 0.5  # of the data sheet's figures that a plain step is taken to reach
LAUNCH_S = 10e-6  # of one operator, from Python
# Data sheets: 1e12 floating-point operations a second (float32, no tensor cores), GB/s. Where a
# name has several boards, the slowest.
GPUS = {
    "RTX 4090": (82.6, 1008.0),
    "A100 PCIe": (19.5, 1935.0),
    "A100 SXM": (19.5, 2039.0),
    "H100 PCIe": (51.2, 2000.0),
    "H100 NVL": (60.0, 3900.0),
    "H100 SXM": (66.9, 3350.0),
}
DEVICES = {  # as the driver calls them
    "GeForce RTX 4090": "RTX 4090",
    "A100 80GB PCIe": "A100 PCIe",
    "A100-SXM4-80GB": "A100 SXM",
    "H100 80GB HBM3": "H100 SXM",
}


class Silent(AtlasModule):
    """The module as it trains, without a trainer to log to."""

    def log(self, *args: Any, **options: Any) -> None: ...

    def log_dict(self, *args: Any, **options: Any) -> None: ...


@dataclass
class Counter(TorchDispatchMode):
    """(flops, bytes) of every operator that computes; views and allocations are free."""

    seen: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            moved = sum(x.numel() * x.element_size() for x in tensors)
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0.0
            self.seen.append((float(flops), float(moved)))
        return out


def prepared(name: str, dataset: Dataset) -> tuple[Any, Any, Any]:
    """A configuration's step as a function, its loader and the number of parameters."""
    resolved = config.load(name, ["model.kernels=reference"])
    data = AtlasDataModule(dataset, resolved)
    loader = data.train_dataloader(resolved.train.batch)
    torch.manual_seed(0)
    width, resolution = dataset.fields.width, resolved.data.resolution
    model = build(resolved.model, width, resolution, resolved.year.head)
    module = Silent(resolved, model, dataset.fields)
    module.trainer = SimpleNamespace(estimated_stepping_batches=1000)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), resolved.train.clip)
        optimizer.step()

    return step, loader, module


def count(name: str, dataset: Dataset) -> dict[str, Any]:
    """What one step does, and the seconds in which a core makes its batch."""
    step, loader, _ = prepared(name, dataset)
    waits, batches = [], iter(loader)
    for _ in range(5):
        begun = time.perf_counter()
        batch = next(batches, None) or next(iter(loader))
        waits.append(time.perf_counter() - begun)
    step(batch)  # the optimiser's first step makes its state
    counter = Counter()
    with counter:
        step(batch)
    return {"operators": counter.seen, "data_s": median(waits[1:]), "batch": len(batch.ids)}


def computed(counted: dict[str, Any], gpu: str) -> float:
    """Seconds of one step on a GPU, by its data sheet."""
    tera, giga = GPUS[gpu]
    work = (
        max(flops / (SHARE * tera * 1e12), moved / (SHARE * giga * 1e9)) + LAUNCH_S
        for flops, moved in counted["operators"]
    )
    return sum(work) + counted["data_s"]


def measured(name: str, dataset: Dataset, steps: int = 50) -> float:
    """Seconds of one step on this machine's GPU, its batch's making included."""
    step, loader, module = prepared(name, dataset)
    module.to("cuda")
    batches, times = iter(loader), []
    for _ in range(steps + 5):
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        step(module.transfer_batch_to_device(batch, module.device, 0))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return median(times[5:])


def row(gpu: str, name: str, seconds: float, source: str) -> dict[str, Any]:
    return {"gpu": gpu, "config": name, "step_s": float(f"{seconds:.3g}"), "source": source}


def main(arguments: Sequence[str]) -> None:
    old = json.loads(OUT.read_text())["rows"] if OUT.is_file() else []
    rows = {(r["gpu"], r["config"]): r for r in old if r["source"] == "measured"}
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(Settings(), Path(folder) / "bundled")
        for name in config.shipped():
            if arguments == ["--measure"]:
                device = torch.cuda.get_device_name().removeprefix("NVIDIA ")
                gpu = DEVICES.get(device, device)
                rows[gpu, name] = row(gpu, name, measured(name, dataset), "measured")
                continue
            counted = count(name, dataset)
            flops, moved = (sum(column) for column in zip(*counted["operators"], strict=True))
            what = f"{flops / 1e9:.0f} GFLOP, {moved / 1e9:.1f} GB, data {counted['data_s']:.3f} s"
            print(
                f"{name}: batch {counted['batch']}, {len(counted['operators'])} operators, {what}"
            )
            for gpu in GPUS:
                seconds = computed(counted, gpu)
                rows.setdefault((gpu, name), row(gpu, name, seconds, "computed"))
    how = " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    lines = ",\n  ".join(json.dumps(r) for r in sorted(rows.values(), key=lambda r: r["config"]))
    OUT.write_text(f'{{\n "how": {json.dumps(how)},\n "rows": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
