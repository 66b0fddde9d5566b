"""API keys: where they are read, and a type that does not let them out by accident."""

from __future__ import annotations

import hmac
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas.errors import AtlasError

HIDDEN = "***"
_NAMES = ("RUNPOD_API_KEY", "WANDB_API_KEY")


class Secret:
    """A string that no repr, format, log line, comparison in a test or pickle shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value

    def reveal(self) -> str:
        """Return the string itself, for the one place that has to send it."""
        return self._value

    def hide(self, text: str) -> str:
        """Return a text without the secret in it."""
        return text.replace(self._value, HIDDEN)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written to files")


@dataclass(frozen=True)
class Key:
    """A secret and where it was found, for messages: ``RUNPOD_API_KEY (environment)``."""

    secret: Secret
    source: str


def keyless(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without keys, for ssh, which may be set to send some of it on."""
    return {name: value for name, value in env.items() if name not in _NAMES}


def keyring(env: Mapping[str, str] = os.environ) -> Path:
    """Return the file that holds keys by name: ``{"RUNPOD_API_KEY": "..."}``, mode 0600."""
    config = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".config")
    return Path(config) / "atlas" / "keys.json"


def find(
    name: str, *, env: Mapping[str, str] = os.environ, folder: Path | None = None
) -> Key | None:
    """Look a key up in the environment, in `folder`/.env, in the keyring file; in this order.

    Parameters
    ----------
    name : ``RUNPOD_API_KEY``, ``WANDB_API_KEY``
    folder : where .env lies; the working directory

    Raises
    ------
    AtlasError
        Where the keyring file may be read by others or is no JSON object of strings, or the value
        cannot be a key. The value is in no message.
    """
    dotenv, ring = (folder or Path.cwd()) / ".env", keyring(env)
    if value := env.get(name, "").strip():
        return _key(value, name, "environment")
    if value := _read_dotenv(dotenv).get(name, "").strip():
        return _key(value, name, str(dotenv))
    if value := _read_keyring(ring).get(name, "").strip():
        return _key(value, name, str(ring))
    return None


def need(name: str, *, env: Mapping[str, str] = os.environ, folder: Path | None = None) -> Key:
    """As `find`, but a missing key is an error that says the three places."""
    key = find(name, env=env, folder=folder)
    if key is None:
        raise AtlasError(
            f"no {name}: set it in the environment, in .env here, or in {keyring(env)} (mode 0600)"
        )
    return key


def _key(value: str, name: str, source: str) -> Key:
    if not value.isascii() or not value.isprintable() or any(c in value for c in " \"'\\"):
        raise AtlasError(f"{name} ({source}): not a key: spaces, quotes or characters not ASCII")
    return Key(Secret(value), f"{name} ({source})")


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):
        raise AtlasError(f"{path}: cannot be read") from None
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    return {
        name.strip(): _unquoted(value.strip())
        for name, equals, value in pairs
        if equals and not name.startswith("#")
    }


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value.partition(" #")[0].strip()


def _read_keyring(path: Path) -> dict[str, str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise AtlasError(f"{path}: cannot be read") from None
    if stat.S_IMODE(mode) & 0o077:
        raise AtlasError(f"{path}: others may read it; chmod 600 {path}")
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise AtlasError(f'{path}: expected a JSON object of strings, {{"RUNPOD_API_KEY": "..."}}')
    return table
