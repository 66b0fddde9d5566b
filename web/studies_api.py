"""The routes under /api about studies: search, one study, codes of peaks and of files."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio
from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import Response

from atlas.explore import upload
from atlas.inference import Code

from .recent import Answer
from .schemas import CodeAnswer, Encoded, EncodeRequest, Entries, Study, StudyList, StudyRow
from .service import MISSING, PROBLEMS, Client, Service, unless_cached

FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_router(service: Service) -> APIRouter:
    """Build the routes over one loaded model."""
    router = APIRouter(prefix="/api", responses=PROBLEMS)
    _add_search(router, service)
    _add_encoding(router, service)
    return router


def _add_search(router: APIRouter, service: Service) -> None:
    @router.get("/studies", response_model=StudyList)
    async def find_studies(
        request: Request,
        q: Annotated[str, Query(max_length=200)] = "",
        category: Annotated[str | None, Query(max_length=100)] = None,
        first: Annotated[int | None, Query(alias="from", ge=1900, le=2100)] = None,
        last: Annotated[int | None, Query(alias="to", ge=1900, le=2100)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Find studies by words over title, authors and id, by task category and year."""
        studies = await service.studies()
        search = partial(studies.search, q, category or None, first, last) if studies else list
        found = await anyio.to_thread.run_sync(search)  # tens of milliseconds for all Neurosynth
        rows = [StudyRow.model_validate(row._asdict()) for row in found[:limit]]
        said = StudyList(total=len(found), studies=rows)
        return unless_cached(request, said.model_dump_json().encode())

    @router.get("/studies/{study_id:path}", response_model=Study, responses=MISSING)
    async def get_study(
        request: Request, study_id: Annotated[str, Path(max_length=200)]
    ) -> Response:
        """Return one study, with the metadata that this model can use, and its code."""
        studies = await service.studies()
        if studies is None:
            raise HTTPException(404, str(service.library.reason))
        position = studies.row.get(study_id)
        if position is None:
            raise HTTPException(404, f"no such study in {studies.source}")

        def work() -> Answer:
            row, code = studies.rows[position], studies.code(position, service.atlas)
            metadata = studies.metadata(position, service.atlas)
            said = Study(**row._asdict(), metadata=metadata, code=_code(code))
            return Answer(said.model_dump_json().encode(), {})

        answer = await service.kept(("study", study_id), work)
        return unless_cached(request, answer.body)


def _add_encoding(router: APIRouter, service: Service) -> None:
    atlas = service.atlas

    @router.post("/encode", response_model=Encoded)
    async def encode(body: EncodeRequest, client: Client = None) -> Response:
        """Find the code of peaks in MNI mm."""

        def work() -> Answer:
            code = atlas.encode(body.peaks, body.metadata)
            said = Encoded(code=_code(code), peaks=len(body.peaks))
            return Answer(said.model_dump_json().encode(), {})

        return await service.answer(body, work, client, "application/json")

    @router.post("/encode-file", response_model=Entries, openapi_extra=FILE_BODY)
    async def encode_file(
        request: Request, name: Annotated[str, Query(max_length=200)] = ""
    ) -> Entries:
        """Find the codes of what a file holds: the raw body, its name for the suffix alone.

        Sleuth text; tables with columns x, y, z; NIMADS JSON; three numbers a line; a NIfTI
        statistic map, which enters through its local maxima.
        """
        raw = await request.body()

        def work() -> Entries:
            found, note = upload.read(name, raw)
            return Entries.model_validate(
                {
                    "entries": [
                        {"label": label, "peaks": len(peaks), "code": _code(atlas.encode(peaks))}
                        for label, peaks in found
                    ],
                    "note": note,
                }
            )

        return await service.do(work, long=True)


def _code(code: Code) -> CodeAnswer:
    return CodeAnswer(mean=code.mean.tolist(), sd=code.sd.tolist())
