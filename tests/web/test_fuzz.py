"""Requests and files that nobody meant to send: no 5xx, nothing outside the schema."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from atlas.web.app import create_app
from atlas.web.library import find
from tests.explore.test_upload import NIMADS, SLEUTH, TABLE, TALAIRACH, image

SOAK = os.environ.get("ATLAS_SOAK") == "1"
OPERATIONS = 15
CASES = (5000 if SOAK else 150) // (2 * OPERATIONS) + 1  # requests an operation and mode
FILES = 10_000 if SOAK else 300
CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]
LIMITS = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=not SOAK,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def app_schema(served_atlas, served_run):
    library = find(served_run, None)
    return schemathesis.openapi.from_asgi(
        "/openapi.json",
        create_app(served_atlas, run=served_run, library=library, hosts=["testserver"]),
    )


def test_any_request_gets_an_answer_of_the_schema(app_schema) -> None:
    """Requests that fit the schema, and ones that do not, to every operation."""
    operations = [found.ok() for found in app_schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)
                LIMITS(given(cases)(ask))()
            except Unsatisfiable:  # an operation that takes nothing cannot be asked wrongly
                assert mode is GenerationMode.NEGATIVE
                assert operation.method == "get"


def ask(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


SEEDS = {
    "a.txt": SLEUTH,
    "b.txt": TALAIRACH,
    "c.json": NIMADS,
    "d.tsv": TABLE,
    "e.txt": b"1 2 3\n4 5 6\n",
    "f.nii": image(shape=(31, 31, 21)),
    "g.nii.gz": gzip.compress(image(shape=(31, 31, 21)), 1),
}
SPLICES = (b"\0", b"\xff", b"-", b"1e999", b"nan", b"\n", b"//", b'"', b"[", b"{}", b"9" * 40)


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, repeat or splice a few bytes; of an image mostly in its header."""
    out = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        reach = min(len(out), 352 if rng.uniform() < 0.7 else len(out)) or 1
        at = int(rng.integers(reach))
        match rng.integers(5):
            case 0:
                out[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                out[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
            case 2:
                del out[at + int(rng.integers(1, 400)) :]
            case 3:
                out[at:at] = out[at : at + 40] * int(rng.integers(1, 4))
            case _:
                out[at:at] = SPLICES[rng.integers(len(SPLICES))]
    return bytes(out)


def test_mutated_files_are_read_or_refused_in_one_line(client) -> None:
    rng = np.random.default_rng(None if SOAK else 0)
    statuses = {200: 0, 422: 0}
    for k in range(FILES):
        name = list(SEEDS)[k % len(SEEDS)]
        raw = mutate(SEEDS[name], rng)
        if rng.uniform() < 0.1:  # a name that promises something else
            name = list(SEEDS)[rng.integers(len(SEEDS))]
        response = client.post("/api/encode-file", params={"name": name}, content=raw)
        assert response.status_code in statuses, (name, raw, response.text)
        statuses[response.status_code] += 1
        if response.status_code == 422:
            detail = response.json()["detail"]
            assert "\n" not in detail
            assert len(detail) < 500
    assert min(statuses.values()) > FILES / 20  # both happen
