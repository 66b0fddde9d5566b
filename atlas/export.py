"""A model for others to run: one ONNX file, or a folder that decodes in the browser itself.

The graph completes the metadata and decodes in one pass, so that whoever runs it needs no code of
this project but the encoding of metadata (`atlas.metadata.Field.encode`), whose table travels
along in the file.
"""

from __future__ import annotations

import base64
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import space
from .errors import require
from .files import replacing
from .inference import UNIT, Atlas
from .models import build
from .models.model import Model
from .objectives import relative_density

OPSET = 18
INPUTS = ("z", "metadata", "known")
OUTPUTS = ("density", "log_variance", "imputed_mean", "imputed_log_variance")
ABOUT = """\
Inputs: z (B, D) codes; metadata (B, M) encoded values, 0 where missing; known (B, M) 1 where a \
value is given, else 0. Outputs: density (B, V) in units of the uniform density and log_variance \
(B, V) of one study's smoothed map around it, at the cells of the mask; imputed_mean and \
imputed_log_variance (B, M) of the encoded metadata, whose means stand in where known is 0. \
The entry "atlas": table of fields, grid, mask (packed bits in base64, C order)."""


class Graph(nn.Module):
    """What the file computes: impute what is missing, decode."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z_BD: Tensor, m_BM: Tensor, known_BM: Tensor) -> tuple[Tensor, ...]:
        """Return density and log variance, (B, V), imputed mean and log variance, (B, M)."""
        mean_BM, log_variance_BM = self.model.impute(z_BD, m_BM, known_BM)
        decoded = self.model.decode(z_BD, torch.where(known_BM > 0, m_BM, mean_BM))
        return relative_density(decoded), decoded.log_variance_BV, mean_BM, log_variance_BM


def onnx_model(atlas: Atlas) -> bytes:
    """Return a model's imputer and decoder as an ONNX file (opset 18).

    Matrices are stored as float16, as in the released weights, and cast when the file is loaded;
    all is computed in float32.

    Raises
    ------
    AtlasError
        The extra `export` is not installed.
    """
    require("onnxscript", "export")
    onnx = require("onnx", "export")
    exported = _trace(atlas)
    _halve(exported, onnx)
    exported.doc_string = ABOUT
    exported.producer_name, exported.producer_version = "atlas", atlas.card.atlas_version
    entry = exported.metadata_props.add()
    entry.key, entry.value = "atlas", json.dumps(encoding(atlas))
    content: bytes = exported.SerializeToString()
    return content


def encoding(atlas: Atlas) -> dict[str, Any]:
    """Return what stands between a user's values and the graph's arrays, as plain data."""
    here = space.load(atlas.card.data.resolution)
    return {
        "name": atlas.card.name,
        "unit": UNIT,
        "fields": atlas.card.table().snapshot(),
        "shape": list(here.grid.shape),
        "affine": here.affine.tolist(),
        "mask": base64.b64encode(np.packbits(here.mask).tobytes()).decode(),
    }


def _trace(atlas: Atlas) -> Any:
    """Trace the model in plain PyTorch, the batch of any size; returns an onnx.ModelProto."""
    card = atlas.card
    config, width = card.model.model_copy(update={"kernels": "reference"}), card.table().width
    model = build(config, width, card.data.resolution, card.year_head)
    model.load_state_dict(atlas._model.state_dict())
    graph = Graph(model).eval()
    example = (torch.zeros(2, atlas.latent), torch.zeros(2, width), torch.ones(2, width))
    batch = torch.export.Dim("batch", min=1)
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # the exporter tells every constant that it folds
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph(*example)  # fills the layers' caches with real arrays, before tracing's fake ones
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                verbose=False,
                input_names=INPUTS,
                output_names=OUTPUTS,
                opset_version=OPSET,
                dynamic_shapes=tuple({0: batch} for _ in INPUTS),
            )
    finally:
        logging.disable(disabled)
    assert program is not None
    return program.model_proto


def _halve(exported: Any, onnx: Any) -> None:
    """Store every matrix as float16, with a node that casts it back."""
    for array in exported.graph.initializer:
        is_matrix = sum(n > 1 for n in array.dims) > 1
        if array.data_type != onnx.TensorProto.FLOAT or not is_matrix:
            continue
        name, stored = array.name, f"{array.name}_half"
        values = onnx.numpy_helper.to_array(array).astype(np.float16)
        array.CopyFrom(onnx.numpy_helper.from_array(values, stored))
        cast = onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT)
        exported.graph.node.insert(0, cast)


def write_onnx(atlas: Atlas, path: Path) -> None:
    """Write `onnx_model` to a file; it appears whole or not at all."""
    content = onnx_model(atlas)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as work:
        work.write_bytes(content)
