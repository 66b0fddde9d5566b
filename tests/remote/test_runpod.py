"""Provider runpod over REST v2 with everything that can go wrong at the double."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import httpx
import pytest

from atlas.errors import AtlasError
from atlas.remote.errors import KeyRefused, NoBalance, OutOfStock, PriceRose, ProviderDown
from atlas.remote.keys import Key, Secret
from atlas.remote.ledger import new_name
from atlas.remote.provider import Offer, Pod, PodSpec
from atlas.remote.runpod import RunPod, connect
from atlas.remote.runpod_rest import Rest
from tests.remote.double import API_KEY, KINDS, Double, Fault, Faults
from tests.remote.double.faults import PODS, REPLIES

OFFER = Offer("RTX 4090", "NVIDIA GeForce RTX 4090", 24, 0.69, "high", ("EU-RO-1", "US-KS-2"))


def spec(**changes: object) -> PodSpec:
    plain = PodSpec(new_name("run"), OFFER, 1, "image@sha256:0", 20, "ssh-ed25519 AAAA a")
    return replace(plain, **changes)  # type: ignore[arg-type]


def provider(double: Double, key: str = API_KEY) -> RunPod:
    env = {"RUNPOD_API_KEY": key}
    return connect(clock=double.clock, env=env, http=double.client(), rng=random.Random(0))


def ready(double: Double, runpod: RunPod, pod: Pod, limit: float = 1800) -> Pod:
    until = double.clock.now().timestamp() + limit
    while double.clock.now().timestamp() < until:
        seen = runpod.pod(pod.id)
        if seen.status == "gone" or seen.endpoint:
            return seen
        double.clock.sleep(5)
    return seen


@pytest.fixture
def make() -> Iterator[Callable[..., Double]]:
    made: list[Double] = []

    def build(*faults: Fault) -> Double:
        made.append(Double(faults=Faults(faults)))
        return made[-1]

    yield build
    for double in made:
        double.close()


def test_wrong_key_is_one_line_that_says_where_it_was_read(make: Callable[..., Double]) -> None:
    with pytest.raises(KeyRefused, match=r"RUNPOD_API_KEY \(environment\)"):
        provider(make(), "rpa_wrong").account()


def test_a_pods_own_key_ends_that_pod_alone(make: Callable[..., Double]) -> None:
    double = make()
    one, two = (provider(double).create(spec()) for _ in range(2))
    own = Rest(Key(Secret(double.everything[one.id].key), "pod"), http=double.client())
    with pytest.raises(KeyRefused):
        own.delete(two.id)
    with pytest.raises(KeyRefused):
        own.pods()
    own.delete(one.id)
    assert [p.id for p in double.running()] == [two.id]


@pytest.mark.parametrize("kind", [k for k in REPLIES if k not in ("unauthorized", "no_balance")])
@pytest.mark.parametrize("on", ["account", "gpus", "create", "list", "get", "delete", "billing"])
def test_one_bad_answer_to_any_call_is_outlived(
    make: Callable[..., Double], kind: str, on: str
) -> None:
    double = make(Fault(kind, on, times=2, seconds=45))
    runpod = provider(double)
    assert runpod.account().user and runpod.offers()
    wanted = spec()
    pod = runpod.create(wanted)
    assert len(double.everything) == 1, "never twice"
    assert [p.id for p in runpod.pods()] == [pod.id]
    assert ready(double, runpod, pod).endpoint
    runpod.terminate(pod.id)
    assert double.running() == []
    assert runpod.cost(pod) == pytest.approx(double.total())
    assert double.faults.happened, "the fault was not met"


@pytest.mark.parametrize("kind", ["lost_reply", "malformed", "slow"])
@pytest.mark.parametrize("late", [0, 5, 12])
def test_a_create_whose_answer_is_lost_is_found_by_name(
    make: Callable[..., Double], kind: str, late: float
) -> None:
    """Also where the list shows the new pod only some seconds later."""
    double = make(Fault(kind, "create", seconds=45), Fault("late_listing", "create", seconds=late))
    wanted = spec()
    pod = provider(double).create(wanted)
    (only,) = double.running()
    assert (only.id, only.name) == (pod.id, wanted.name)
    assert double.faults.counts["create"] == 1


@pytest.mark.parametrize("late", [60, 75])
def test_a_pod_that_shows_up_after_a_second_create_is_ended(
    make: Callable[..., Double], late: float
) -> None:
    """The first is not listed for longer than we look: two are made, one stays."""
    double = make(Fault("lost_reply", "create"), Fault("late_listing", "create", seconds=late))
    runpod = provider(double)
    pod = runpod.create(spec())
    assert len(double.everything) == 2
    double.clock.advance(45)
    assert runpod.pod(pod.id).status == "running"
    assert [p.id for p in double.running()] == [pod.id]
    runpod.terminate(pod.id)
    assert double.running() == []


def test_create_that_stays_unclear_says_that_it_was_sent(make: Callable[..., Double]) -> None:
    double = make(Fault("slow", "create", times=99, seconds=45), Fault("never_ready", "create"))
    double.faults.planned.append(Fault("late_listing", "create", times=99, seconds=9999))
    with pytest.raises(ProviderDown) as caught:
        provider(double).create(spec())
    assert caught.value.sent


def test_a_refusal_after_an_unclear_create_does_not_hide_it(make: Callable[..., Double]) -> None:
    """Else the ledger would close a pod that shows up a minute later."""
    double = make(
        Fault("lost_reply", "create"),
        Fault("late_listing", "create", seconds=200),
        Fault("out_of_stock", "create", call=2),
    )
    with pytest.raises(ProviderDown, match="an earlier call may have made it") as caught:
        provider(double).create(spec())
    assert caught.value.sent
    double = make(Fault("lost_reply", "create"), Fault("error", "list", call=2, times=99))
    with pytest.raises(ProviderDown) as caught:
        provider(double).create(spec())
    assert caught.value.sent


def test_refusals_before_anything_is_made(make: Callable[..., Double]) -> None:
    double = make(Fault("no_balance", "create"))
    with pytest.raises(NoBalance, match="balance"):
        provider(double).create(spec())
    double = make(Fault("out_of_stock", "create"))
    with pytest.raises(OutOfStock, match="RTX 4090"):
        provider(double).create(spec())
    with pytest.raises(OutOfStock, match=r"none in region AP; there are some in EU-RO-1, US-KS-2"):
        provider(double).create(spec(region="AP"))
    double.balance = 0.5
    with pytest.raises(NoBalance):
        provider(double).create(spec())
    for bad in ({"args": 'bash -c "x"'}, {"env": {"A": "b\nc"}}, {"name": "other"}):
        with pytest.raises(AtlasError, match="of the pod|no name for a pod"):
            provider(double).create(spec(**bad))
    assert double.everything == {}


def test_region_and_what_is_sent(make: Callable[..., Double]) -> None:
    double = make()
    wanted = spec(region="eu", env={"A": "b"}, args="start", volume="vol1")
    provider(double).create(wanted)
    (made,) = double.running()
    assert made.body["dataCenterIds"] == ["EU-RO-1"]
    assert made.body["env"] == {"A": "b", "PUBLIC_KEY": wanted.public_key}
    assert made.body["mounts"]["network"] == [{"volumeId": "vol1", "path": "/workspace"}]
    assert (made.body["args"], made.body["ports"]) == ("start", ["22/tcp"])
    assert API_KEY not in str(made.body)


def test_a_price_that_jumped_is_refused_and_terminated(make: Callable[..., Double]) -> None:
    double = make(Fault("price_jump", "create"))
    with pytest.raises(PriceRose, match=r"offered at \$0\.69 an hour, came at \$1\.38") as caught:
        provider(double).create(spec())
    assert caught.value.pod.id in double.everything
    assert double.running() == []


def test_late_ports_never_ready_vanished(make: Callable[..., Double]) -> None:
    double = make(Fault("late_ports", "create", seconds=300))
    runpod = provider(double)
    assert ready(double, runpod, runpod.create(spec())).endpoint
    assert (double.clock.now() - double.running()[0].created).total_seconds() > 300
    double = make(Fault("never_ready", "create"))
    runpod = provider(double)
    pod = runpod.create(spec())
    assert ready(double, runpod, pod).status == "starting"
    runpod.terminate(pod.id)
    assert double.running() == []
    double = make(Fault("vanish", "create", seconds=100))
    runpod = provider(double)
    pod = runpod.create(spec())
    assert ready(double, runpod, pod).endpoint
    double.clock.advance(100)
    assert runpod.pod(pod.id).status == "gone" and runpod.pods() == []
    assert runpod.cost(pod) == pytest.approx(0.69 * 100 / 3600)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_host_key_is_read_through_a_log_that_is_cut(
    make: Callable[..., Double], times: int
) -> None:
    double = make(Fault("cut_logs", "logs", call=2, times=times))
    runpod = provider(double)
    endpoint = ready(double, runpod, runpod.create(spec())).endpoint
    assert endpoint and endpoint.host_key and endpoint.host_key.startswith("ssh-ed25519 AAAA")
    assert double.faults.counts["logs"] == 2, "the second goes on where the first was cut"


def test_an_image_that_says_no_host_key_is_waited_for_a_minute(make: Callable[..., Double]) -> None:
    double = make()
    runpod = provider(double)
    pod = runpod.create(spec())
    double.clock.advance(60)
    runpod.pod(pod.id)
    double.everything[pod.id].log.clear()
    double.everything[pod.id].log.append((double.clock.now(), "atlas-host-key $(reboot)"))
    runpod = provider(double)
    assert runpod.pod(pod.id).endpoint is None
    double.clock.advance(61)
    endpoint = runpod.pod(pod.id).endpoint
    assert endpoint is not None and endpoint.host_key is None


def test_terminate_that_cannot_be_confirmed_says_what_to_do(make: Callable[..., Double]) -> None:
    double = make()
    runpod = provider(double)
    pod = runpod.create(spec())
    double.faults.planned.append(Fault("error", "delete", times=999))
    with pytest.raises(ProviderDown, match=f"atlas remote stop {pod.id}"):
        runpod.terminate(pod.id)
    double.faults.planned.clear()
    double.faults.planned.append(Fault("unauthorized", "delete", call=1, times=999))
    double.faults.counts.clear()
    double.faults.planned[0] = replace(double.faults.planned[0], times=3)
    runpod.terminate(pod.id)
    assert double.running() == []


def test_the_key_is_in_no_error() -> None:
    """Not even where the provider quotes it."""
    for status in (400, 401, 402, 403, 409, 422, 429, 500):
        rest = Rest(Key(Secret(API_KEY), "RUNPOD_API_KEY (.env)"), http=_quoting(status))
        assert API_KEY not in repr(rest) + repr(rest._key)
        for call in (rest.account, partial(rest.create, spec(), ()), partial(rest.delete, "p")):
            with pytest.raises(AtlasError) as caught:
                call()
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert API_KEY not in shown and "\n" not in str(caught.value)


def _quoting(status: int) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        said = f"bad {request.headers['Authorization']}\nline two"
        return httpx.Response(status, json={"title": "x", "detail": said, "status": status})

    return httpx.Client(transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("url", ["http://api.example.com", "ftp://127.0.0.1", "api", "http://"])
def test_a_key_goes_over_tls_or_stays_on_this_machine(url: str) -> None:
    env = {"RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": url}
    with pytest.raises(AtlasError, match="ATLAS_RUNPOD_URL"):
        connect(clock=Double().clock, env=env)


def test_unreachable_is_one_line_and_was_not_sent() -> None:
    env = {"RUNPOD_API_KEY": API_KEY, "ATLAS_RUNPOD_URL": "http://127.0.0.1:9"}
    runpod = connect(clock=Double().clock, env=env)
    with pytest.raises(ProviderDown, match=r"127\.0\.0\.1:9: no connection") as caught:
        runpod.create(spec())
    assert not caught.value.sent


SEEDS = 1000 if os.environ.get("ATLAS_SOAK") == "1" else 60


@pytest.mark.parametrize("block", range(4))
def test_whatever_the_seed_no_pod_is_left(block: int) -> None:
    """Create, wait, terminate under drawn faults: it works, or ends with one line; nothing runs."""
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        double = Double(faults=Faults.seeded(seed))
        runpod = provider(double)
        wanted, pod = spec(), None
        try:
            pod = runpod.create(wanted)
            ready(double, runpod, pod, limit=120)
        except AtlasError as error:
            assert "\n" not in str(error), seed
        for left in [pod] if pod else runpod.pods():
            runpod.terminate(left.id)
        double.clock.advance(700)
        for left in runpod.pods():
            assert left.name == wanted.name
            runpod.terminate(left.id)
        assert double.running() == [], seed
        total = sum(runpod.cost(Pod(p, "", "gone", 0.0)) or 0.0 for p in double.everything)
        assert total == pytest.approx(double.total()), seed
        double.close()


def test_the_seeds_draw_every_kind() -> None:
    drawn = {f.kind for seed in range(200) for f in Faults.seeded(seed).planned}
    assert drawn == set(KINDS) - {"unauthorized"} and set(PODS) < drawn
