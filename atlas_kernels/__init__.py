"""Kernels for coordinate-based brain maps, for PyTorch and for NumPy.

Importing this package imports neither: each function loads what it needs when it is called.
``python -m atlas_kernels`` shows which implementations run on this machine.
"""

from ._dispatch import implementations
from ._version import __version__
from .dense_block import dense_block
from .grid import Grid
from .group_norm_film import group_norm_film
from .splat import splat

__all__ = [
    "Grid",
    "__version__",
    "dense_block",
    "group_norm_film",
    "implementations",
    "splat",
]
