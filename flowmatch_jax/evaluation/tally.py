"""Statistics of the samples drawn so far, which can be saved and resumed."""

from __future__ import annotations

import logging
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.runtime.files import npz, write_atomically

logger = logging.getLogger(__name__)

PARTS = ("features", "logits", "pairs")  # the lists of arrays of a tally


@dataclass
class Tally:
    """Statistics of the samples drawn so far.

    Attributes:
        moments: moments of the features of the finite samples.
        drawn: number of samples.
        not_finite: number of samples that were left out because a value is not finite.
        converged: whether the solver converged for all batches.
        nfe: NFE of each batch.
        features, logits: features and logits of the finite samples per batch, if a score needs
            them.
        pairs: `pair_scores` of the finite samples per batch, for super-resolution.
    """

    moments: Moments
    drawn: int = 0
    not_finite: int = 0
    converged: bool = True
    nfe: list[float] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    pairs: list[np.ndarray] = field(default_factory=list)

    def feature_set(self) -> FeatureSet:
        """Return what scores use of the samples."""
        parts = (self.features, self.logits)
        return FeatureSet(self.moments, *(np.concatenate(part) if part else None for part in parts))

    def save(self, path: Path, settings: str) -> None:
        """Write the statistics, without rounding, and the settings of the samples."""
        fields = vars(self) | {
            name: np.concatenate(parts) if (parts := getattr(self, name)) else np.zeros(0)
            for name in PARTS
        }
        moments = fields.pop("moments")
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {"mu": moments.mean, "sigma": moments.cov, "count": moments.count}
        write_atomically(path, npz(settings=settings, **fields, **known))

    @classmethod
    def load(cls, path: Path, settings: str) -> Tally | None:
        """Read what `save` wrote; returns None if the file is missing or has other settings."""
        if not path.exists():
            return None
        try:
            with np.load(path) as saved:
                if str(saved["settings"]) != settings:
                    return None
                return cls(
                    moments=Moments(int(saved["count"]), saved["mu"], saved["sigma"]),
                    drawn=int(saved["drawn"]),
                    not_finite=int(saved["not_finite"]),
                    converged=bool(saved["converged"]),
                    nfe=saved["nfe"].tolist(),
                    **{name: [saved[name]] if saved[name].size else [] for name in PARTS},
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s cannot be read, and samples are drawn again: %s", path, error)
            return None
