"""The data module under several processes, and what it must never touch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from atlas import config
from atlas.data.dataset import Dataset, read
from atlas.data.prepare import Settings, prepare
from atlas.training.datamodule import AtlasDataModule

CONFIG = config.load("smoke", ["train.batch=8"])


def ids_of(data: Dataset, rank: int, world: int, epoch: int = 0) -> list[list[str]]:
    module = AtlasDataModule(data, CONFIG)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return [list(batch.ids) for batch in loader]


def test_ranks_share_an_epoch_between_them(bundled: Dataset) -> None:
    ranks = [ids_of(bundled, rank, 2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 14  # as many steps for each, or the others wait
    seen = [study for batches in ranks for batch in batches for study in batch]
    assert sorted(seen) == bundled.splits["train"]
    assert ids_of(bundled, 0, 2, epoch=1) != ranks[0]


def _process(rank: int, path: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    data = read(Path(path))
    batches = ids_of(data, dist.get_rank(), dist.get_world_size())
    rows = torch.tensor([data.row[study] for batch in batches for study in batch])
    gathered = [torch.zeros_like(rows) for _ in range(2)]
    dist.all_gather(gathered, rows)
    if rank == 0:
        torch.save(torch.cat(gathered), f"{out}/rows.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes_see_every_study_once(bundled: Dataset, tmp_path: Path) -> None:
    mp.spawn(_process, args=(str(bundled.path), str(tmp_path)), nprocs=2)
    rows = torch.load(tmp_path / "rows.pt", weights_only=True)
    assert sorted(rows.tolist()) == sorted(bundled.rows("train").tolist())


def test_unassigned_studies_are_never_trained_on(bundled: Dataset, tmp_path: Path) -> None:
    given = tmp_path / "splits.csv"
    named = bundled.splits["train"][:20] + bundled.splits["val"][:5] + bundled.splits["test"][:5]
    side = {i: name for name, members in bundled.splits.items() for i in members}
    given.write_text("id,split\n" + "\n".join(f"{i},{side[i]}" for i in named))
    data = prepare(Settings(splits=given), tmp_path / "data")
    assert len(data.splits["unassigned"]) == 290
    module = AtlasDataModule(data, CONFIG)
    loaders = (module.train_dataloader(), module.val_dataloader())
    seen = {study for loader in loaders for batch in loader for study in batch.ids}
    assert seen == set(data.splits["train"] + data.splits["val"])
