"""The linear methods that a model has to beat, fitted on the same training studies.

Each predicts maps (S, V); hyper-parameters are chosen on the validation studies.
"""

from __future__ import annotations

import numpy as np
import torch


class MeanMap:
    """The mean of the training maps, whatever the study."""

    def __init__(self, train: np.ndarray) -> None:
        self._mean = train.mean(0)

    def predict(self, studies: int) -> np.ndarray:
        """Return (S, V)."""
        return np.broadcast_to(self._mean, (studies, len(self._mean)))


class PCA:
    """Projection on the leading components of the training maps.

    Randomised: Halko et al. 2011, SIAM Review; seeded.

    Attributes
    ----------
    mean : (V,) ndarray
    components : (components, V) ndarray, orthonormal rows, the leading first
    """

    def __init__(self, train: np.ndarray, components: int, seed: int = 0) -> None:
        self.mean = train.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            q = min(components + 8, *train.shape)
            centred = torch.from_numpy(np.ascontiguousarray(train - self.mean))
            _, _, v = torch.svd_lowrank(centred, q=q, niter=4)
        self.components = np.ascontiguousarray(v[:, :components].numpy().T)

    def encode(self, maps: np.ndarray) -> np.ndarray:
        """Return the coordinates of maps (S, V) on the components, (S, components)."""
        return maps @ self.components.T - self.mean @ self.components.T

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the maps (S, V) of coordinates; fewer than all mean the leading components."""
        return self.mean + codes @ self.components[: codes.shape[1]]

    def reconstruct(self, maps: np.ndarray) -> np.ndarray:
        """Return each map from its components, (S, V)."""
        return self.decode(self.encode(maps))


class Ridge:
    """Ridge regression of the maps on the metadata; missing elements take the training mean."""

    def __init__(
        self, metadata: np.ndarray, observed: np.ndarray, train: np.ndarray, alpha: float
    ) -> None:
        seen = observed.sum(0)
        self._fill = (metadata * observed).sum(0) / np.maximum(seen, 1)
        features = self._features(metadata, observed)
        self._centre, self._mean = features.mean(0), train.mean(0)
        x = features - self._centre
        gram = x.T @ x + alpha * len(x) * np.eye(x.shape[1])
        self._weights = np.linalg.solve(gram, x.T @ (train - self._mean))

    def _features(self, metadata: np.ndarray, observed: np.ndarray) -> np.ndarray:
        return np.where(observed > 0, metadata, self._fill)

    def predict(self, metadata: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Return (S, V)."""
        return self._mean + (self._features(metadata, observed) - self._centre) @ self._weights
