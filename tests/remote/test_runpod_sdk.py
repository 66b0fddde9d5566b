"""The runpod SDK as a transport: its errors become ours here; the real one runs in its own place.

The SDK cannot live beside pytest-benchmark (both bring a module `cpuinfo`), so the contract runs in
an environment of its own: the one of ATLAS_RUNPOD_SDK_PYTHON, or under ATLAS_SOAK=1 one built for
it. Everything else here needs no SDK.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from atlas.errors import AtlasError
from atlas.remote.errors import KeyRefused, NoBalance, OutOfStock, ProviderDown
from atlas.remote.keys import Key, Secret
from atlas.remote.runpod_sdk import Sdk
from tests.remote.double import API_KEY
from tests.remote.test_runpod import spec
from tests.support import ROOT

PINNED = "runpod==1.12.0"


class _Query(Exception):
    def __init__(self, message: str):
        super().__init__(message)
        self.query = f"mutation {{ env: {API_KEY} }}"


class _Auth(Exception):
    pass


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for the package: the names that the transport touches."""
    module: Any = types.ModuleType("runpod")
    module.api_key = None
    module.error = types.SimpleNamespace(AuthenticationError=_Auth, QueryError=_Query)
    module.create_pod = module.get_pod = module.get_pods = module.terminate_pod = None
    monkeypatch.setitem(sys.modules, "runpod", module)
    return module


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    ("raised", "ours", "sent"),
    [
        (_Auth(f"no {API_KEY}"), KeyRefused, None),
        (_Query(f"There are no longer any instances available {API_KEY}"), OutOfStock, None),
        (_Query("Your balance is too low\nfor this"), NoBalance, None),
        (_Query("Internal server error"), ProviderDown, True),
        (_Query("field x is wrong"), AtlasError, None),
        (KeyError("data"), ProviderDown, True),
        (TypeError("'NoneType' object is not subscriptable"), ProviderDown, True),
        (requests.exceptions.JSONDecodeError("x", "<html>", 0), ProviderDown, True),
        (json.JSONDecodeError("x", "<html>", 0), ProviderDown, True),
        (requests.exceptions.ReadTimeout(), ProviderDown, True),
        (requests.exceptions.ConnectTimeout(), ProviderDown, False),
        (requests.exceptions.ConnectionError("Remote end closed"), ProviderDown, True),
        (requests.exceptions.ConnectionError("NewConnectionError: refused"), ProviderDown, False),
        (ValueError("No GPU found"), OutOfStock, None),
    ],
)
def test_what_the_sdk_raises_becomes_one_line_of_ours(
    sdk: Any, raised: Exception, ours: type[AtlasError], sent: bool | None
) -> None:
    sdk.create_pod = _raising(raised)
    with pytest.raises(ours) as caught:
        Sdk(Key(Secret(API_KEY), "RUNPOD_API_KEY (.env)")).create(spec(), ())
    assert type(caught.value) is ours
    assert getattr(caught.value, "sent", None) is sent
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert API_KEY not in shown and "\n" not in str(caught.value)


def test_the_key_is_lent_for_one_call(sdk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "https://elsewhere")
    seen: list[tuple[str, str]] = []

    def pods() -> list[Any]:
        seen.append((sdk.api_key, os.environ["RUNPOD_API_BASE_URL"]))
        return []

    sdk.get_pods = pods
    transport = Sdk(Key(Secret(API_KEY), "x"), "http://127.0.0.1:1/")
    assert transport.pods() == []
    assert seen == [(API_KEY, "http://127.0.0.1:1")]
    assert (sdk.api_key, os.environ["RUNPOD_API_BASE_URL"]) == (None, "https://elsewhere")
    sdk.get_pods = _raising(KeyError("data"))
    with pytest.raises(ProviderDown):
        transport.pods()
    assert sdk.api_key is None


@pytest.mark.parametrize("answer", [None, 3, [{}], [{"id": "p"}], "text"])
def test_answers_that_are_not_as_documented(sdk: Any, answer: Any) -> None:
    sdk.get_pods = lambda: answer
    with pytest.raises(ProviderDown, match="not as documented"):
        Sdk(Key(Secret(API_KEY), "x")).pods()


def test_an_id_that_would_leave_its_quotes_is_refused(sdk: Any) -> None:
    with pytest.raises(AtlasError, match="no pod's id"):
        Sdk(Key(Secret(API_KEY), "x")).pod('p"}) { id } }')


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "runpod", None)
    with pytest.raises(AtlasError, match=r"generative-brain-atlas\[runpod-sdk\]"):
        Sdk(Key(Secret(API_KEY), "x"))


def _python(folder: Path) -> str:
    if given := os.environ.get("ATLAS_RUNPOD_SDK_PYTHON"):
        return given
    if os.environ.get("ATLAS_SOAK") != "1":
        pytest.skip("ATLAS_RUNPOD_SDK_PYTHON is not set; `make soak` builds an environment for it")
    python = folder / "sdk" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "sdk")], check=True)
    wanted = [PINNED, "graphql-core", "httpx", "pydantic", "pytest"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    return str(python)


@pytest.mark.slow
def test_the_contract_and_the_faults_through_the_real_sdk(tmp_path: Path) -> None:
    command = [_python(tmp_path), "-m", "pytest", "-q", "--noconftest", "-c", os.devnull]
    command += ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-k", "TestSdk or real_sdk_only"]
    files = ["tests/remote/test_contract.py", "tests/remote/real_sdk.py"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
