"""Maps as bytes for the page: float16, little endian, x fastest, with scales in headers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atlas.errors import AtlasError
from atlas.explore import strip, uncertainty
from atlas.inference import Atlas, Point

from .recent import Answer
from .schemas import (
    CounterfactualRequest,
    DecodeRequest,
    NiftiRequest,
    StripRequest,
    UncertaintyRequest,
)


def pack(volume: np.ndarray) -> tuple[bytes, float]:
    """Turn a map into bytes for the page.

    Parameters
    ----------
    volume : float array of any shape

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


def answer(arrays: Sequence[tuple[str, np.ndarray]], affine: Any, point: Point) -> Answer:
    """Pack arrays of one shape one after another, with what the page needs to read them."""
    packed = [pack(array) for _, array in arrays]
    (shape,) = {array.shape for _, array in arrays}
    headers = {
        "X-Atlas-Names": [name for name, _ in arrays],
        "X-Atlas-Scales": [scale for _, scale in packed],
        "X-Atlas-Shape": shape,
        "X-Atlas-Affine": np.asarray(affine).tolist(),
        "X-Atlas-Imputed": point.imputed,
        "X-Atlas-Extrapolated": point.extrapolated,
    }
    said = {name: json.dumps(value) for name, value in headers.items()}
    return Answer(b"".join(raw for raw, _ in packed), {**said, "X-Atlas-Dtype": "<f2"})


def volumes(atlas: Atlas, cells: Mapping[str, np.ndarray], point: Point) -> Answer:
    """Put values of the mask's cells, (V,) each, into volumes and pack them."""
    arrays = [(name, atlas.space.volume(values)) for name, values in cells.items()]
    return answer(arrays, atlas.space.affine, point)


def decode(atlas: Atlas, body: DecodeRequest) -> Answer:
    """Make the answer of POST /api/decode."""
    point = atlas.point(body.z, body.metadata)
    mean, sd = atlas.cells(point.z_BD, point.m_BM)
    return volumes(atlas, {body.quantity: (mean if body.quantity == "mean" else sd)[0]}, point)


def counterfactual(atlas: Atlas, body: CounterfactualRequest) -> Answer:
    """Make the answer of POST /api/counterfactual; what was imputed is of either side."""
    left, right = atlas.pair(body.z, body.metadata, body.changes)
    before, after = (atlas.cells(p.z_BD, p.m_BM)[0][0] for p in (left, right))
    cells = {"factual": before, "counterfactual": after, "difference": after - before}
    beyond = tuple(dict.fromkeys(left.extrapolated + right.extrapolated))
    both = right._replace(imputed={**left.imputed, **right.imputed}, extrapolated=beyond)
    return volumes(atlas, cells, both)


def strips(atlas: Atlas, body: StripRequest) -> Answer:
    """Make the answer of POST /api/strip; extrapolated where one of the values is."""
    names = [f"{v:g}" if isinstance(v, float) else v for v in body.values]
    row = strip.points(atlas, body.z, body.metadata, body.field, body.values)
    beyond = tuple(sorted({name for point in row for name in point.extrapolated}))
    slices = strip.slices(atlas, row, body.axis, body.mm)
    return answer(
        list(zip(names, slices)), atlas.space.affine, row[0]._replace(extrapolated=beyond)
    )


def parts(atlas: Atlas, body: UncertaintyRequest) -> Answer:
    """Make the answer of POST /api/uncertainty."""
    found = uncertainty.uncertainty(atlas, body.z, body.sd, body.metadata, body.samples, body.seed)
    cells = {name: getattr(found, name) for name in ("mean", *uncertainty.PARTS)}
    return volumes(atlas, cells, found.point)


def nifti(atlas: Atlas, body: NiftiRequest) -> Answer:
    """Make the answer of POST /api/nifti."""
    changes = body.changes or {}
    if body.quantity == "difference":
        image = atlas.counterfactual(body.z, body.metadata, changes).difference
    else:
        point = atlas.pair(body.z, body.metadata, changes)[1]
        values = atlas.cells(point.z_BD, point.m_BM)[body.quantity == "sd"]
        image = atlas.space.image(atlas.space.volume(values[0]))
    name = f"space-MNI152NLin6Asym_res-{atlas.space.resolution}_desc-{body.quantity}"
    said = {"Content-Disposition": f'attachment; filename="{name}_statmap.nii.gz"'}
    return Answer(gzip.compress(image.to_bytes(), 6, mtime=0), said)
