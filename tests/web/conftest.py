"""A model behind the viewer, in three ways: the object, its application, a server in a thread."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from atlas.inference import Atlas
from atlas.web.app import create_app
from atlas.web.library import find

with warnings.catch_warnings():  # starlette would rather have httpx2, which is no dependency here
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture(scope="session")
def served_run(tiny_run: Path) -> Path:
    return tiny_run


@pytest.fixture(scope="session")
def served_atlas(served_run: Path) -> Atlas:
    return Atlas.load(served_run)


@pytest.fixture(scope="session")
def client_of() -> Callable[..., TestClient]:
    return lambda app, **said: TestClient(app, base_url="http://127.0.0.1:8000", **said)


@pytest.fixture(scope="session")
def client(
    client_of: Callable[..., TestClient], served_atlas: Atlas, served_run: Path
) -> TestClient:
    """The run's model beside its own dataset."""
    library = find(served_run, None)
    return client_of(create_app(served_atlas, run=served_run, library=library))


@pytest.fixture(scope="session")
def server(served_atlas: Atlas, served_run: Path) -> Iterator[str]:
    """Address of a real server on a free port."""
    app = create_app(served_atlas, run=served_run, library=find(served_run, None))
    with serving(app) as address:
        yield address


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application from a thread; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not uvicorn_server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    uvicorn_server.should_exit = True
    thread.join(timeout=10)
    listener.close()
