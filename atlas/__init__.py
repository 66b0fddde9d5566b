"""atlas: a conditional generative atlas of brain maps, learnt from activation peaks.

Importing this package imports neither torch nor NiMARE; `atlas.inference.Atlas` is where most
users start.
"""

from atlas_kernels._version import __version__

__all__ = ["__version__"]
