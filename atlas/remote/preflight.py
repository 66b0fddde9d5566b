"""What is looked at on this machine and in the catalogue before any money is spent."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atlas import config as configuration
from atlas.config import Config
from atlas.errors import AtlasError

from . import keys
from .errors import OutOfStock
from .provider import Offer

if TYPE_CHECKING:
    from .plan import Request

SYSTEM_GB = 15  # of a pod's disk, for the environment, code, checkpoints and W&B
LEAST_MEMORY_GB = 16  # of a GPU that is chosen for a user who names none
SOURCES = ("atlas/", "atlas_kernels/", "cli/", "csrc/", "web/")


def resolve(request: Request) -> Config:
    """Read the configuration as `atlas train` does."""
    source = request.config
    if source is None and request.resume and (request.out / "config.yaml").is_file():
        source = str(request.out / "config.yaml")
    return configuration.load(source, request.overrides)


def pick(request: Request, offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers to try, in order: as the user named them, or the cheapest.

    A name stands for every GPU that begins with it: ``A100`` for A100 PCIe and A100 SXM.
    """
    wanted: list[Offer] = []
    for name in request.gpu:
        found = _named(name, offers)
        if not found:
            raise AtlasError(f"--gpu {name}: unknown; there are {_priced(offers)}")
        wanted += [offer for offer in found if offer not in wanted]
    if not request.gpu:
        wanted = [o for o in offers if o.memory >= LEAST_MEMORY_GB or not o.price]
    region = request.region
    reached = [o for o in wanted if not region or not o.regions or _lies_in(o, region)]
    if wanted and not reached:
        regions = ", ".join(sorted({r for o in wanted for r in o.regions}))
        raise AtlasError(f"--region {region}: none of these GPUs there; they are in {regions}")
    there = [offer for offer in reached if offer.stock != "none"]
    if not there:
        asked = ", ".join(request.gpu) or f"GPUs with {LEAST_MEMORY_GB} GB"
        others = [offer for offer in offers if offer.stock != "none"]
        raise OutOfStock(f"{asked}: out of stock now; in stock are {_priced(others) or 'none'}")
    return there


def _lies_in(offer: Offer, region: str) -> bool:
    """Whether it can be had in a data centre, EU-RO-1, or in any of a continent's, EU."""
    return any(r.upper() == region.upper() or r.upper().startswith(f"{region.upper()}-")
               for r in offer.regions)  # fmt: skip


def _named(name: str, offers: Sequence[Offer]) -> list[Offer]:
    asked = " ".join(name.lower().split())
    exact = [o for o in offers if asked in (o.gpu.lower(), o.gpu_id.lower())]
    return exact or [o for o in offers if asked and o.gpu.lower().startswith(f"{asked} ")]


def _priced(offers: Sequence[Offer]) -> str:
    return ", ".join(f"{o.gpu} ({money(o.price)}/h)" for o in offers)


def check_wandb(config: Config, bills: bool) -> None:
    """Refuse a run for W&B that a rented pod could not log in for."""
    if bills and config.logging.wandb == "online" and keys.find("WANDB_API_KEY") is None:
        raise AtlasError(
            "logging.wandb=online: no WANDB_API_KEY here; set it, or take logging.wandb=offline"
        )


def check_disk(request: Request, bills: bool, size: int, disk: int) -> None:
    """Refuse a dataset (bytes) that a pod's disk (GB) has no room for."""
    room = disk - SYSTEM_GB
    if bills and not request.volume and size > room * 1e9:
        raise AtlasError(
            f"{request.data}: {size / 1e9:.1f} GB, but the pod's disk has {room} GB for it; "
            "use --volume"
        )


def check_out(request: Request, config: Config) -> None:
    """Refuse what `atlas train` would refuse there, as far as it can be seen without torch."""
    out = request.out
    holds_checkpoint = (out / "checkpoints" / "last.ckpt").is_file()
    if out.exists() and not out.is_dir():
        raise AtlasError(f"{out}: is no folder; choose another --out")
    if not request.resume:
        if (holds_checkpoint or (out / "model.json").exists()) and not request.force:
            raise AtlasError(f"{out}: holds a run already; --resume it, or --force to replace it")
        return
    if not holds_checkpoint:
        raise AtlasError(f"{out}: holds no checkpoint to resume from; train without --resume")
    stored = configuration.load(out / "config.yaml")
    if (stored.model, stored.data.resolution) != (config.model, config.data.resolution):
        raise AtlasError(f"{out}: cannot resume with another model or resolution")


def tree() -> tuple[str | None, int, tuple[str, ...]]:
    """Return the checkout's commit, how many tracked files differ, and the untracked ones.

    From a wheel there is no checkout: None. An untracked source would be missed there silently, so
    it is refused.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, 0, ()
    lines = _git(root, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
    entries = [line for line in lines.split("\0") if line]
    untracked = tuple(e[3:] for e in entries if e.startswith("??"))
    sources = [name for name in untracked if name.startswith(SOURCES)]
    if sources:
        raise AtlasError(
            f"not tracked, so it would not go: {some(sources)}; git add it, or move it away"
        )
    return _git(root, "rev-parse", "HEAD").strip(), len(entries) - len(untracked), untracked


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise AtlasError("git is not on this machine: install git") from None
    except subprocess.CalledProcessError as error:
        raise AtlasError(f"git {arguments[0]}: {error.stderr.strip()}") from None


def some(names: Sequence[str], most: int = 3) -> str:
    """Name the first few, count the rest."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def money(dollars: float) -> str:
    """Write dollars as a bill does; what is not nothing is never written as nothing."""
    return f"${dollars:.2f}" if dollars >= 0.005 or dollars <= 0 else "under $0.01"
