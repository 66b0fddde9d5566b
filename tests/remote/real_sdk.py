"""Faults through the real SDK; test_runpod_sdk.py runs this where the SDK is installed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atlas.errors import AtlasError
from atlas.remote.errors import KeyRefused, NoBalance, OutOfStock, PriceRose
from atlas.remote.ledger import new_name
from atlas.remote.provider import PodSpec
from atlas.remote.runpod import RunPod, connect
from tests.remote.double import API_KEY, Double, Fault, Faults


@contextmanager
def real_sdk(*faults: Fault, key: str = API_KEY) -> Iterator[tuple[Double, RunPod]]:
    double = Double(faults=Faults(faults))
    with double.serve() as url:
        env = {"RUNPOD_API_KEY": key, "ATLAS_RUNPOD_URL": url}
        rng = random.Random(0)
        yield double, connect(clock=double.clock, transport="sdk", env=env, rng=rng)
        double.close()


def spec(provider: RunPod) -> PodSpec:
    return PodSpec(
        name=new_name("sdk"),
        offer=provider.offers()[0],
        gpus=2,
        image="image@sha256:0",
        disk=33,
        public_key="ssh-ed25519 AAAA+/= a@b",
        env={"A": "b c"},
        args="bash -c 'echo $HOME | tee x'",
        region="EU-RO-1",
    )


@pytest.mark.parametrize(
    "kind", ["rate_limited", "error", "bad_gateway", "malformed", "lost_reply", "slow"]
)
@pytest.mark.parametrize("on", ["account", "gpus", "create", "list", "get", "delete"])
def test_real_sdk_only_one_bad_answer(kind: str, on: str) -> None:
    with real_sdk(Fault(kind, on, times=2, seconds=0.1)) as (double, provider):
        assert provider.account().balance == pytest.approx(100.0)
        pod = provider.create(spec(provider))
        assert len(double.everything) == 1
        double.clock.advance(60)
        assert provider.pod(pod.id).endpoint
        provider.terminate(pod.id)
        assert double.running() == []
        assert double.faults.happened


def test_real_sdk_only_what_is_sent() -> None:
    with real_sdk() as (double, provider):
        wanted = spec(provider)
        provider.create(wanted)
        (made,) = double.running()
        assert made.body["env"] == {"A": "b c", "PUBLIC_KEY": wanted.public_key}
        assert (made.body["args"], made.body["disk"]) == (wanted.args, 33)
        assert (made.count, made.body["ports"]) == (2, ["22/tcp"])
        assert made.body["dataCenterIds"] == ["EU-RO-1"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("no_balance", NoBalance), ("out_of_stock", OutOfStock), ("price_jump", PriceRose)],
)
def test_real_sdk_only_refusals(kind: str, error: type[AtlasError]) -> None:
    with real_sdk(Fault(kind, "create")) as (double, provider):
        with pytest.raises(error):
            provider.create(spec(provider))
        assert double.running() == []


def test_real_sdk_only_wrong_key() -> None:
    with real_sdk(key="rpa_wrong") as (_, provider), pytest.raises(KeyRefused) as caught:
        provider.account()
    assert "rpa_wrong" not in str(caught.value)
