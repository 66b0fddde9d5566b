"""What the viewer waits for: one map decoded, beside one study encoded."""

from __future__ import annotations

from typing import Any

import numpy as np

from atlas.data.dataset import Dataset
from atlas.inference import Atlas


def test_decode_one_map(measure: Any, atlas: Atlas, bundled: Dataset) -> None:
    peaks = bundled.peaks(int(bundled.rows("test")[0]))
    code, metadata = atlas.encode(peaks), {"n": 20}
    ours, _ = atlas.decode_array(code, metadata)
    assert np.array_equal(ours, np.asarray(atlas.decode(code, metadata).mean.dataobj))
    measure(lambda: atlas.decode_array(code, metadata), encode=lambda: atlas.encode(peaks))
