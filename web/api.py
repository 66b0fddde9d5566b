"""The routes under /api about the model and its maps."""

from __future__ import annotations

import json
from functools import partial
from importlib import resources

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from starlette.background import BackgroundTask

from atlas.errors import AtlasError
from atlas.explore import describe, effect, peaks, regions

from . import maps
from .recent import Answer
from .schemas import (
    CounterfactualRequest,
    DecodeRequest,
    EffectAnswer,
    EffectRequest,
    Model,
    NiftiRequest,
    PeaksRequest,
    PeakTable,
    RegionNames,
    StripRequest,
    UncertaintyRequest,
)
from .service import BINARY, MISSING, PROBLEMS, Client, Service, unless_cached


def create_router(service: Service) -> APIRouter:
    """Build the routes over one loaded model."""
    router = APIRouter(prefix="/api", responses=PROBLEMS)
    _add_descriptions(router, service)
    _add_maps(router, service)
    _add_tables(router, service)
    return router


def _add_descriptions(router: APIRouter, service: Service) -> None:
    """Add what stays the same while the server runs."""
    template = resources.files("atlas").joinpath("resources/mni152_t1_2mm.nii.gz").read_bytes()

    @router.get("/model", response_model=Model)
    def get_model(request: Request) -> Response:
        """Describe the model: latent directions, metadata fields, grid, colours."""
        said = describe.describe(service.atlas, service.run, service.library.info, service.topics)
        response = unless_cached(request, Model.model_validate(said).model_dump_json().encode())
        response.background = BackgroundTask(service.open_library)
        return response

    @router.get("/template.nii.gz", response_class=Response, responses=_file("application/gzip"))
    def get_template(request: Request) -> Response:
        """Return the T1 template, NIfTI in gzip."""
        return unless_cached(request, template, "application/gzip")

    @router.get("/regions", response_model=RegionNames, responses=MISSING)
    def get_regions(request: Request) -> Response:
        """Name the labels of /api/regions.bin."""
        names = {str(label): name for label, name in _regions().names.items()}
        said = RegionNames(names=names, source=regions.SOURCE, licence=regions.LICENCE)
        return unless_cached(request, said.model_dump_json().encode())

    @router.get(
        "/regions.bin",
        response_class=Response,
        responses={**MISSING, **_file("application/octet-stream")},
    )
    def get_labels(request: Request) -> Response:
        """Return one uint8 volume of labels, x fastest."""
        found = _regions()
        headers = {
            "X-Atlas-Shape": json.dumps(found.labels.shape),
            "X-Atlas-Affine": json.dumps(found.affine.tolist()),
            "X-Atlas-Dtype": "|u1",
        }
        raw = found.labels.tobytes(order="F")
        return unless_cached(request, raw, "application/octet-stream", headers)


def _add_maps(router: APIRouter, service: Service) -> None:
    """Add the routes that answer with volumes."""
    atlas = service.atlas

    @router.post("/decode", response_class=Response, responses=BINARY)
    async def decode(body: DecodeRequest, client: Client = None) -> Response:
        """Decode one map."""
        return await service.answer(body, partial(maps.decode, atlas, body), client)

    @router.post("/counterfactual", response_class=Response, responses=BINARY)
    async def counterfactual(body: CounterfactualRequest, client: Client = None) -> Response:
        """Decode one code under two sets of metadata, and their difference."""
        return await service.answer(body, partial(maps.counterfactual, atlas, body), client)

    @router.post("/strip", response_class=Response, responses=BINARY)
    async def get_strip(body: StripRequest, client: Client = None) -> Response:
        """Decode one slice for each value of a field."""
        return await service.answer(body, partial(maps.strips, atlas, body), client, long=True)

    @router.post("/uncertainty", response_class=Response, responses=BINARY)
    async def get_uncertainty(body: UncertaintyRequest, client: Client = None) -> Response:
        """Decode the mean map and the standard deviations of three parts, which add up squared."""
        return await service.answer(body, partial(maps.parts, atlas, body), client, long=True)

    @router.post("/nifti", response_class=Response, responses=_file("application/gzip"))
    async def nifti(body: NiftiRequest, client: Client = None) -> Response:
        """Return one map as NIfTI in gzip."""
        work = partial(maps.nifti, atlas, body)
        return await service.answer(body, work, client, "application/gzip", long=True)


def _add_tables(router: APIRouter, service: Service) -> None:
    """Add the routes that answer with numbers about maps."""
    atlas = service.atlas

    @router.post("/effect", response_model=EffectAnswer)
    async def get_effect(body: EffectRequest, client: Client = None) -> Response:
        """Measure the effect of one changed field beside its permutation null."""
        studies = await service.studies()

        def work() -> Answer:
            found = effect.effect(atlas, body.z, body.metadata, body.changes, studies)
            said = EffectAnswer.model_validate(found._asdict())
            return Answer(said.model_dump_json().encode(), {})

        return await service.answer(body, work, client, "application/json", long=True)

    @router.post("/peaks", response_model=PeakTable)
    async def get_peaks(body: PeaksRequest, client: Client = None) -> Response:
        """List the peaks of the mean map with 90 % intervals."""

        def work() -> Answer:
            try:
                named = regions.load()
            except AtlasError:
                named = None
            found = peaks.peaks(
                atlas,
                body.z,
                body.sd,
                body.metadata,
                body.parts,
                body.samples,
                body.seed,
                body.most,
                named,
            )
            said = PeakTable.model_validate({"peaks": [peak._asdict() for peak in found]})
            return Answer(said.model_dump_json().encode(), {})

        return await service.answer(body, work, client, "application/json", long=True)


def _regions() -> regions.Regions:
    try:
        return regions.load()
    except AtlasError as error:
        raise HTTPException(404, str(error)) from None


def _file(media_type: str) -> dict[int | str, dict[str, object]]:
    """Describe a binary answer in the schema."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"content": content, "description": "the file"}}
