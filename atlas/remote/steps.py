"""The steps from nothing to a job that runs: create, wait, send, install, start."""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from atlas import config as configuration
from atlas.config import Config
from atlas.errors import AtlasError
from atlas.files import building

from . import bundle, keys, preflight, shell
from .errors import NoBalance, OutOfStock, PriceRose, ProviderDown
from .fetch import run_folder
from .ledger import bill, new_name
from .preflight import money
from .provider import Offer, Pod, PodSpec
from .reach import PodLost, Way
from .state import KEY, LOG, PACKED, Job, Machine

READY_WITHIN = timedelta(minutes=12)  # pulling a large image takes minutes
SILENCE_S = 5400.0  # a laptop may sleep for an hour
GRACE_S, GRACE_SHARE = 300.0, 0.1  # before the ceiling the job ends and is fetched
HERE = Path(__file__).parent
START = (
    "printenv${IFS}ATLAS_START|base64${IFS}-d>/tmp/atlas-start;exec${IFS}bash${IFS}/tmp/atlas-start"
)
_RESUMED = ("config.yaml", "environment.json", "metrics.csv", "checkpoints")


class NotReady(PodLost):
    """The pod never became ready; it is ended and the next one is tried."""


def create(job: Job) -> Pod:
    """Create a pod of the first GPU in the list that can be had."""
    reasons = []
    for offer in list(job.state.offers):
        try:
            return _create(job, offer)
        except OutOfStock as error:  # the price rose, too
            _not_made(job, error)
            reasons.append(str(error))
            job.say("create", f"{offer.gpu}: {error}")
        except NoBalance as error:
            _not_made(job, error)
            raise
    raise OutOfStock("; ".join(dict.fromkeys(reasons)) or "no GPU is left in the list")


def _create(job: Job, offer: Offer) -> Pod:
    state, request, now = job.state, job.state.request, job.clock.now()
    machine = Machine(new_name(job.out.name), offer, offer.price * request.gpus, now)
    machine.log = _size(job.folder / LOG)
    state.machines.append(machine)
    end = state.end_of(machine)
    if end is not None and end <= now:
        state.machines.pop()
        raise AtlasError("the ceiling leaves no time for a pod")
    job.save("create")
    job.ledger.plan(
        machine.name, job=state.id, provider=job.provider.name, time=now, run=str(job.out),
        gpu=offer.gpu, gpus=request.gpus, price=machine.price,
    )  # fmt: skip
    pod = job.provider.create(_spec(job, machine, end.timestamp() - now.timestamp() if end else 0))
    machine.id, machine.price, machine.created = pod.id, pod.price, pod.created or now
    job.ledger.created(machine.name, pod, job.clock.now())
    job.save("wait")
    price = f" at {money(pod.price)}/h" if pod.price else ""
    job.say("create", f"pod {pod.id}, {offer.gpu}{price}")
    return pod


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _spec(job: Job, machine: Machine, seconds: float) -> PodSpec:
    request = job.state.request
    key = shell.make_key(job.folder / KEY) if job.provider.name != "local" else ""
    env, args = {}, ""
    if job.provider.bills:
        script = (HERE / "pod" / "start.sh").read_bytes()
        env = {
            "ATLAS_START": base64.b64encode(script).decode(),
            "ATLAS_SECONDS": str(int(seconds)),
            "ATLAS_FIRST_CONTACT": str(int(READY_WITHIN.total_seconds() + 600)),
        }
        args = f"bash -c {START}"
    return PodSpec(machine.name, machine.offer, request.gpus, job.state.image, job.state.disk, key,
                   env, args, request.region, request.volume)  # fmt: skip


def _not_made(job: Job, error: OutOfStock | NoBalance) -> None:
    """Close a planned pod that was not made, or was ended at once because of its price."""
    machine, now = job.state.machine, job.clock.now()
    if isinstance(error, PriceRose):
        machine.id, machine.price = error.pod.id, error.pod.price
        machine.created = error.pod.created or machine.planned
        job.ledger.created(machine.name, error.pod, now)
        told = job.provider.cost(error.pod)
        machine.cost, machine.estimated = bill(told, machine.price, machine.created, now, ran=True)
        job.ledger.ended(machine.name, now, cost=machine.cost, reason="price rose",
                         estimated=machine.estimated)  # fmt: skip
        machine.ended = now
    else:
        job.state.machines.pop()
        reason = "no balance" if isinstance(error, NoBalance) else "out of stock"
        job.ledger.ended(machine.name, now, cost=0.0, reason=reason)
    job.save()


def wait(way: Way) -> None:
    """Wait until the pod answers over SSH."""
    job, since = way.job, way.job.clock.now()
    while True:
        try:
            pod = way.pod()
            if pod.status == "running" and (pod.endpoint or not job.provider.bills):
                break
        except ProviderDown:
            pass
        if job.clock.now() - since > READY_WITHIN:
            raise NotReady(f"pod {job.state.machine.id}: not ready after 12 minutes")
        job.clock.sleep(3)
    way.there(lambda there: there.run(["true"]))
    job.say("wait", "the pod answers")


def arm(way: Way) -> None:
    """Send the runner and start the dead man's switch, before anything that takes time."""
    job = way.job
    description = describe(job)
    with tempfile.TemporaryDirectory() as name:
        pod = Path(name) / "pod"
        pod.mkdir()
        for source in (HERE / "pod").glob("*.py"):
            (pod / source.name).write_bytes(source.read_bytes())
        (Path(name) / "job.json").write_text(json.dumps(description, indent=1))
        _push(way, pod, "pod")
        _push(way, Path(name) / "job.json", "job.json")
    way.call("arm")


def describe(job: Job) -> dict[str, object]:
    """Return the pod's job.json: what to run, where, and until when."""
    state, machine, now = job.state, job.state.machine, job.clock.now()
    end = state.end_of(machine)
    seconds = None if end is None else (end - now).total_seconds()
    grace = 0.0 if seconds is None else min(GRACE_S, GRACE_SHARE * seconds)
    return {
        "id": machine.name,
        "run": run_folder(job),
        "commands": state.commands or commands(job),
        "python": os.environ.get("ATLAS_REMOTE_PYTHON") or _this_python(job),
        "commit": state.commit,
        "env": _env(job),
        "seconds": seconds,
        "grace": grace,
        "silence": None if state.request.detach and state.step == "train" else SILENCE_S,
        "delete": job.provider.bills,
    }


def _this_python(job: Job) -> str | None:
    return sys.executable if job.provider.name == "local" else None


def _env(job: Job) -> dict[str, str]:
    """Variables of the job, none of them secret: one W&B run through resumes and new pods."""
    env = {"WANDB_RUN_ID": job.state.wandb, "WANDB_RESUME": "allow"}
    for name in ("WANDB_ENTITY", "WANDB_BASE_URL"):
        if os.environ.get(name):
            env[name] = os.environ[name]
    return env


def commands(job: Job) -> list[list[str]]:
    """Return the training and the evaluation, as lists of arguments."""
    state, config = job.state, resolved(job)
    run = run_folder(job)
    python = ["{python}", "-m"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
    train = [*python, *torchrun, str(config.train.devices), "-m", "atlas.cli", "train",
             "config.yaml", "--data", "data", "--out", run]  # fmt: skip
    if _resumes(job):
        train.append("--resume")
    if state.request.force:
        train.append("--force")
    return [train, [*python, "atlas.cli", "evaluate", run, "--data", "data"]]


def pack(job: Job) -> None:
    """Hold code and configuration still: a later pod goes on with those of the first.

    Whoever works on in the checkout meanwhile changes no run.
    """
    job.state.commit = bundle.commit()
    with building(job.folder / PACKED) as folder:
        bundle.make(folder)
        (folder / "config.yaml").write_text(_asked(job).to_yaml())


def resolved(job: Job) -> Config:
    """Read the configuration that was packed."""
    return configuration.load(job.folder / PACKED / "config.yaml")


def _asked(job: Job) -> Config:
    """Read the configuration as `atlas train` does, with a process for each GPU that is paid."""
    config = preflight.resolve(job.state.request)
    gpus = job.state.request.gpus
    if gpus == 1:
        return config
    strategy = "ddp" if config.train.strategy == "auto" else config.train.strategy
    train = config.train.model_copy(update={"devices": gpus, "strategy": strategy})
    return config.model_copy(update={"train": train})


def _resumes(job: Job) -> bool:
    """Whether there is a checkpoint here to go on from: the user's, or one of a lost pod."""
    last = job.out / "checkpoints" / "last.ckpt"
    return last.is_file() and (
        job.state.request.resume or "checkpoints/last.ckpt" in job.state.pulled
    )


def send(way: Way) -> None:
    """Send code, dataset and configuration, and the checkpoint of a run that goes on."""
    job = way.job
    job.save("send")
    for file in sorted((job.folder / PACKED).iterdir()):
        _push(way, file, file.name)
    code = job.state.commit[:10] if job.state.commit else "the installed version"
    job.say("send", f"code ({code})")
    if job.state.request.data != Path():  # a check has none
        _push(way, job.state.request.data.resolve(), "data")
        job.say("send", f"data ({job.state.request.data})")
    if _resumes(job):
        for part in _RESUMED:
            if (job.out / part).exists():
                _push(way, job.out / part, f"{run_folder(job)}/{part}")
        job.say("send", "the last checkpoint, to go on from")


def _push(way: Way, source: Path, target: str) -> None:
    way.there(lambda there: there.push(source, target))


def install(way: Way) -> None:
    """Make the environment ready there, or reuse the one that the image brings."""
    way.job.save("install")
    said = way.call("install", timeout=3600).decode().strip()
    way.job.say("install", said.splitlines()[-1] if said else "installed")


def start(way: Way) -> None:
    """Start the job, detached; keys go over standard input, and only if W&B is used."""
    job = way.job
    key = keys.find("WANDB_API_KEY") if resolved(job).logging.wandb == "online" else None
    if key is not None:
        way.call("secret", stdin=json.dumps({"WANDB_API_KEY": key.secret.reveal()}).encode())
    if not job.state.request.resume and not _resumes(job):
        _clear(job)
    way.call("start")
    job.save("train")
    job.say("train", "started")


def _clear(job: Job) -> None:
    """Take away what an older run left, as a local `--force` does."""
    for name in ("model.safetensors", "model.json", "metrics.csv", "test_results.json"):
        (job.out / name).unlink(missing_ok=True)
    for checkpoint in (job.out / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink()
