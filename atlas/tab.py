"""The atlas in a tab: the built page and a model as a folder for any static host.

The page then decodes in the reader's browser and asks nobody. Runtime, model and regions are packed
by LZMA, which the page unpacks itself: smaller than what static hosts negotiate, on every host.
"""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import export
from .errors import AtlasError
from .explore import describe, regions
from .files import building
from .inference import Atlas

if TYPE_CHECKING:
    from .explore.studies import Studies

INDEX, CONTENTS, STUDIES = "index.html", "atlas.json", "studies.json"
MODEL, REGIONS, TEMPLATE = "model.onnx", "regions.bin", "template.nii.gz"
RUNTIMES = {"wasm": "ort-wasm-simd-threaded-*.wasm", "webgpu": "ort-*.jspi-*.wasm"}  # in assets/
NOT_ON_WEBGPU = b"ConvTranspose"  # in three dimensions, onnxruntime-web 1.30
SERVED_ONLY = ("docs", "swagger*")  # of the built page: the API's documentation
# In the page: that the tab answers, and that it asks nobody but its own host.
HEAD = """
    <meta name="atlas-backend" content="tab" />
    <meta http-equiv="Content-Security-Policy" content="default-src 'self'; \
script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; object-src 'none'; \
base-uri 'none'; form-action 'none'" />"""
ALONE = "standalone.js"  # fetched when somebody downloads a page
TEXTS = (".js", ".css", ".html", ".json", ".svg")
LEAST = 1024  # bytes worth compressing


def write(
    atlas: Atlas, folder: Path, page: Path, run: Path | None, studies: Studies | str
) -> dict[str, int]:
    """Write the folder; it appears whole or not at all.

    Parameters
    ----------
    folder : Path
        Made, or replaced where it holds an earlier export.
    page : Path
        The built page, `atlas.web.app.STATIC`.
    run : Path or None
        The model's folder, None for the released one: coverage and topics come from it.
    studies : Studies or str
        Studies whose codes travel along, or why there are none.

    Returns
    -------
    dict
        Bytes on the wire: "runtime" (the larger one), "model", and of the rest "page" (texts in
        gzip).

    Raises
    ------
    AtlasError
        The page is not built; `folder` holds something else; the extra `export` is missing.
    """
    if not (page / INDEX).is_file():
        raise AtlasError("the page is not built; run `make frontend` in the source tree")
    _refuse_foreign(folder)
    graph = export.onnx_model(atlas)
    with building(folder) as work:
        _copy_page(page, work)
        files = {
            **_pack_runtimes(work / "assets", webgpu=NOT_ON_WEBGPU not in graph),
            "model": _pack(work / MODEL, graph, lc=1, lp=1, pb=1),  # values of two bytes
        }
        found = _write_studies(atlas, work / STUDIES, studies)
        labels = _write_regions(work / REGIONS, files)
        said = {
            **export.encoding(atlas),
            # By its name: where it lies on this machine is nobody's business.
            "model": {**describe.describe(atlas, run, found), "run": run and run.name},
            "fields": _rows(atlas),
            "regions": labels,
            "files": files,
        }
        (work / CONTENTS).write_text(json.dumps(said), encoding="utf-8")
        # A reader fetches one of them.
        runtime = max(files[name]["packed"] for name in RUNTIMES if name in files)
        return {"runtime": runtime, "model": files["model"]["packed"], "page": _compress(work)}


def _refuse_foreign(folder: Path) -> None:
    ours = (folder / CONTENTS).is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise AtlasError(f"{folder}: exists and is no exported page; choose another folder")


def _copy_page(page: Path, work: Path) -> None:
    """Copy what the tab needs, and tell the page that it is one."""
    shutil.copytree(page, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*SERVED_ONLY))
    index = (work / INDEX).read_text(encoding="utf-8")
    (work / INDEX).write_text(index.replace("<head>", f"<head>{HEAD}", 1), encoding="utf-8")
    template = resources.files("atlas").joinpath("resources/mni152_t1_2mm.nii.gz")
    (work / TEMPLATE).write_bytes(template.read_bytes())
    notice = resources.files("atlas").joinpath("resources/mni152_t1_2mm.LICENSE.txt")
    (work / "template-license.txt").write_bytes(notice.read_bytes())


def _pack_runtimes(assets: Path, webgpu: bool) -> dict[str, dict[str, int]]:
    """Pack each runtime in its place; returns sizes by what it runs on."""
    files = {}
    for device, pattern in RUNTIMES.items():
        path = next(assets.glob(pattern), None)
        if path is None:
            raise AtlasError(f"the built page has no runtime for {device}: run `make frontend`")
        if device == "wasm" or webgpu:
            files[device] = _pack(path, path.read_bytes())
        path.unlink()
    return files


def _pack(path: Path, content: bytes, **settings: int) -> dict[str, int]:
    """Write PATH.lzma; returns its bytes packed and unpacked."""
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 2**24, **settings}]
    packed = lzma.compress(content, lzma.FORMAT_ALONE, filters=filters)
    path.with_name(f"{path.name}.lzma").write_bytes(packed)
    return {"packed": len(packed), "bytes": len(content)}


def _rows(atlas: Atlas) -> list[dict[str, Any]]:
    """Return the table of fields with what can be set and what training saw."""
    about = {field["name"]: field for field in atlas.describe()["fields"]}
    return [
        {**row, "why": about[row["name"]]["reason"], "trained": about[row["name"]]["trained"]}
        for row in atlas.fields.snapshot()
    ]


def _write_studies(atlas: Atlas, path: Path, studies: Studies | str) -> dict[str, Any]:
    """Write every study with its code, newest first; returns what the page says of them."""
    if isinstance(studies, str):
        return {"count": 0, "source": None, "reason": studies}
    out = []
    for row in studies.search():
        position = studies.row[row.id]
        code = studies.code(position, atlas)
        parts = {"mean": code.mean, "sd": code.sd}
        out.append(
            {
                **row._asdict(),
                "metadata": {k: _short(v) for k, v in studies.metadata(position, atlas).items()},
                "code": {k: [round(float(x), 4) for x in v] for k, v in parts.items()},
            }
        )
    path.write_text(json.dumps(out), encoding="utf-8")
    return {"count": len(out), "source": studies.source, "reason": None}


def _short(value: Any) -> Any:
    """Leave out weights that are 0; four digits of the others."""
    if not isinstance(value, dict):
        return value
    return {name: round(weight, 4) for name, weight in value.items() if weight > 0}


def _write_regions(path: Path, files: dict[str, dict[str, int]]) -> dict[str, Any] | None:
    """Write the labels, where an atlas of regions is installed."""
    try:
        found = regions.load()
    except AtlasError:
        return None
    files["regions"] = _pack(path, found.labels.tobytes(order="F"))
    return {
        "names": {str(label): name for label, name in found.names.items()},
        "source": regions.SOURCE,
        "licence": regions.LICENCE,
        "shape": list(found.labels.shape),
        "affine": found.affine.tolist(),
    }


def _compress(work: Path) -> int:
    """Write texts in gzip beside them, for hosts that look; returns the bytes of a first visit."""
    total = (work / TEMPLATE).stat().st_size
    for path in sorted(work.rglob("*")):
        if path.suffix not in TEXTS or path.stat().st_size < LEAST:
            continue
        packed = gzip.compress(path.read_bytes(), 9, mtime=0)
        path.with_name(f"{path.name}.gz").write_bytes(packed)
        total += len(packed) if path.name not in (STUDIES, ALONE) else 0
    return total
