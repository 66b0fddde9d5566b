"""The routes under /api: the model's description, one decoded map, the template under it."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from atlas.errors import AtlasError
from atlas.inference import Atlas

MAX_LATENT = 4096  # longer than any code; the model itself then checks the exact length
Z_LIMIT = 1e3  # codes are of the order of 1; far beyond, float32 decoders overflow

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Code = Annotated[float, Field(strict=True, ge=-Z_LIMIT, le=Z_LIMIT)]


class DecodeRequest(BaseModel):
    """Body of POST /api/decode.

    Attributes
    ----------
    z : list of float or None
        Latent code; None is the centre, all zeros.
    metadata : dict
        Number or category by field name; fields left out or None are imputed.
    quantity : "mean" or "sd"
        The map, or the decoder's own uncertainty about it.
    """

    model_config = ConfigDict(extra="forbid")

    z: Annotated[list[Code], Field(max_length=MAX_LATENT)] | None = None
    metadata: dict[str, Number | StrictStr | None] = {}
    quantity: Literal["mean", "sd"] = "mean"


class Direction(BaseModel):
    """One latent direction: its place in z, how much it does, the spread of codes along it."""

    index: int
    activity: float
    sd: float


class Latent(BaseModel):
    """The latent space; directions by activity, the most active first."""

    size: int
    directions: list[Direction]


class Category(BaseModel):
    """One choice of a category field."""

    value: str
    label: str


class FieldControl(BaseModel):
    """What the page needs to draw the control of one metadata field."""

    name: str
    label: str
    kind: Literal["category", "number"]
    unit: str | None
    low: float | None
    high: float | None
    step: float | None
    scale: Literal["linear", "log"]
    categories: list[Category] | None
    available: bool
    reason: str | None
    trained: tuple[float, float] | None
    help: str


class GridInfo(BaseModel):
    """Shape and voxel-to-mm affine of a decoded map."""

    shape: tuple[int, int, int]
    affine: list[list[float]]


class Display(BaseModel):
    """Fixed limits of the colours of the mean map."""

    low: float
    high: float


class Model(BaseModel):
    """Body of GET /api/model."""

    model_config = ConfigDict(extra="allow")

    name: str
    unit: str
    version: str
    latent: Latent
    fields: list[FieldControl]
    grid: GridInfo
    display: Display
    conditioned: bool


BINARY: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": {}},
        "description": "float16, little endian, x fastest; value = raw * X-Atlas-Scale",
    },
    413: {"description": "the body is too long"},
    422: {"description": "a value is refused; `detail` says which in one line"},
}


def pack(volume: np.ndarray) -> tuple[bytes, float]:
    """Turn a map into bytes for the page.

    Parameters
    ----------
    volume : (X, Y, Z) float array

    Returns
    -------
    raw : bytes
        float16, little endian, Fortran order (x fastest), within -1 and 1.
    scale : float
        ``volume = raw * scale``: no value overflows float16 whatever the unit.

    Raises
    ------
    AtlasError
        If a value is not finite.
    """
    peak = float(np.abs(volume).max(initial=0.0))
    if not np.isfinite(peak):
        raise AtlasError("the decoded map is not finite at this point; move closer to the centre")
    scale = peak or 1.0
    return (volume / scale).astype("<f2").tobytes(order="F"), scale


def create_router(atlas: Atlas) -> APIRouter:
    """Build the routes over one loaded model."""
    router = APIRouter(prefix="/api")
    description = Model.model_validate(atlas.describe())
    model = description.model_dump_json().encode()
    affine = json.dumps(description.grid.affine)
    template = resources.files("atlas").joinpath("resources/mni152_t1_2mm.nii.gz").read_bytes()
    one_at_a_time = anyio.CapacityLimiter(1)  # torch uses all threads for one map already

    @router.get("/model", response_model=Model)
    def get_model(request: Request) -> Response:
        """Describe the model: latent directions, metadata fields, grid, colours."""
        return _unless_cached(request, model, "application/json")

    @router.get("/template.nii.gz", response_class=Response)
    def get_template(request: Request) -> Response:
        """Return the T1 template, NIfTI in gzip."""
        return _unless_cached(request, template, "application/gzip")

    @router.post("/decode", response_class=Response, responses=BINARY)
    async def decode(request: DecodeRequest) -> Response:
        """Decode one map."""

        def work() -> tuple[bytes, dict[str, str]]:
            volume, imputed = atlas.decode_array(request.z, request.metadata, request.quantity)
            raw, scale = pack(volume)
            return raw, {
                "X-Atlas-Shape": json.dumps(volume.shape),
                "X-Atlas-Dtype": "<f2",
                "X-Atlas-Scale": repr(scale),
                "X-Atlas-Affine": affine,
                "X-Atlas-Imputed": json.dumps(imputed),
            }

        try:
            raw, headers = await anyio.to_thread.run_sync(work, limiter=one_at_a_time)
        except AtlasError as error:
            raise HTTPException(422, str(error)) from None
        return Response(raw, media_type="application/octet-stream", headers=headers)

    return router


def _unless_cached(request: Request, body: bytes, media_type: str) -> Response:
    """Return the body with its ETag, or 304 where the browser has it already."""
    headers = {
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # keep it, but ask: another run may be served here next
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
