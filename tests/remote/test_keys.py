"""Keys: where they are found, and that nothing shows them."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from pathlib import Path

import pytest

from atlas.errors import AtlasError
from atlas.remote import keys

VALUE = "rpa_1234567890abcdefSECRET"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}


def _ring(env: dict[str, str], text: str, mode: int = 0o600) -> Path:
    path = keys.keyring(env)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_order_is_environment_dotenv_keyring(env: dict[str, str], tmp_path: Path) -> None:
    assert keys.find("RUNPOD_API_KEY", env=env, folder=tmp_path) is None
    ring = _ring(env, json.dumps({"RUNPOD_API_KEY": "third"}))
    found = keys.need("RUNPOD_API_KEY", env=env, folder=tmp_path)
    assert (found.secret.reveal(), str(ring) in found.source) == ("third", True)
    (tmp_path / ".env").write_text("# RUNPOD_API_KEY=no\nexport RUNPOD_API_KEY='second' \n")
    assert keys.need("RUNPOD_API_KEY", env=env, folder=tmp_path).secret.reveal() == "second"
    env["RUNPOD_API_KEY"] = " first\n"
    found = keys.need("RUNPOD_API_KEY", env=env, folder=tmp_path)
    assert (found.secret.reveal(), found.source) == ("first", "RUNPOD_API_KEY (environment)")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("K=a", "a"),
        ('K="a"', "a"),
        ("  K = a # mine", "a"),
        ("K=", None),
        ("#K=a", None),
        ("KK=a", None),
        ("K", None),
        ("K=a=b", "a=b"),
    ],
)
def test_dotenv(env: dict[str, str], tmp_path: Path, line: str, value: str | None) -> None:
    (tmp_path / ".env").write_text(f"\n{line}\n")
    found = keys.find("K", env=env, folder=tmp_path)
    assert (found and found.secret.reveal()) == value


def test_missing_key_says_the_three_places(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"no RUNPOD_API_KEY.*environment.*\.env.*keys\.json"):
        keys.need("RUNPOD_API_KEY", env=env, folder=tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_keyring_that_others_may_read_is_refused(
    env: dict[str, str], tmp_path: Path, mode: int
) -> None:
    _ring(env, json.dumps({"RUNPOD_API_KEY": VALUE}), mode)
    with pytest.raises(AtlasError, match="chmod 600") as caught:
        keys.find("RUNPOD_API_KEY", env=env, folder=tmp_path)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"RUNPOD_API_KEY": 3}', f"RUNPOD_API_KEY={VALUE}"])
def test_damaged_keyring(env: dict[str, str], tmp_path: Path, text: str) -> None:
    _ring(env, text)
    with pytest.raises(AtlasError, match="expected a JSON object") as caught:
        keys.find("RUNPOD_API_KEY", env=env, folder=tmp_path)
    assert VALUE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("bad", [f"{VALUE} x", f"{VALUE}é", f'{VALUE}"', f"{VALUE}\nX: y"])
def test_what_cannot_be_a_key_is_refused_unsaid(env: dict[str, str], bad: str) -> None:
    with pytest.raises(AtlasError, match="not a key") as caught:
        keys.find("K", env=env | {"K": bad})
    assert VALUE not in "".join(traceback.format_exception(caught.value))


def test_a_secret_shows_itself_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    secret = keys.Secret(VALUE)
    key = keys.Key(secret, "RUNPOD_API_KEY (environment)")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").error("%s %r %s", secret, key, {"k": secret})
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", repr(key), caplog.text]
    assert all(VALUE not in text for text in shown)
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret.hide(f"bad token {VALUE}!") == "bad token ***!"
    assert secret == keys.Secret(VALUE) != keys.Secret("other")
    assert len({secret, keys.Secret(VALUE)}) == 1
