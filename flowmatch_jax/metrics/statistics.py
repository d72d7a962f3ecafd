"""Files of the moments of features, which also tell what the features are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import npz


class Kind(NamedTuple):
    """What features are of. Features of two kinds cannot be compared.

    Attributes:
        dims: number of features of an image.
        extractor: name of the extractor; None if it is unknown.
        shape: shape [H, W, C] of the images; None if it is unknown.
    """

    dims: int
    extractor: str | None
    shape: tuple[int, ...] | None

    def check_like(self, wanted: Kind, path: Path) -> None:
        """Raise UserError about ``path``, which these are from, unless they may be as ``wanted``.

        A network resizes images and turns grey ones into RGB, so that their channels may differ.
        """
        if None not in (self.extractor, wanted.extractor) and self.extractor != wanted.extractor:
            got = f"{path} of {self.extractor}"
            allowed = f"the extractor is {wanted.extractor}: choose one for both"
            raise UserError("path", got, allowed)
        axes = 3 if wanted.extractor == "pixels" else 2
        known = None not in (self.shape, wanted.shape)
        if known and self.shape[:axes] != wanted.shape[:axes]:
            got = f"{path} of images {self.shape}"
            raise UserError("path", got, f"the samples are {wanted.shape}")
        if self.dims != wanted.dims:
            got = f"{path} of {self.dims} features"
            raise UserError("path", got, f"{wanted.extractor} has {wanted.dims} features")


@dataclass(frozen=True)
class Statistics:
    """Moments of features and what they are of; None for what a published file does not tell.

    Attributes:
        moments: the moments.
        extractor: name of the extractor.
        shape: shape [H, W, C] of the images.
    """

    moments: Moments
    extractor: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def kind(self) -> Kind:
        """What the features are of."""
        return Kind(len(self.moments.mean), self.extractor, self.shape)

    def to_bytes(self) -> bytes:
        """Return the content of an npz file of mu, sigma and what else is known."""
        further = {"count": self.moments.count, "extractor": self.extractor, "shape": self.shape}
        known = {name: value for name, value in further.items() if value is not None}
        return npz(mu=self.moments.mean, sigma=self.moments.cov, **known)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read an npz file of this package, or one that `Moments.load` reads.

        Raises:
            UserError: as in `Moments.load`.
        """
        moments = Moments.load(path)
        with np.load(path) as file:
            extractor = str(file["extractor"]) if "extractor" in file else None
            shape = tuple(file["shape"].tolist()) if "shape" in file else None
        return cls(moments, extractor, shape)


def is_statistics(path: Path) -> bool:
    """Test whether a file is an npz archive with mu and sigma."""
    try:
        with ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, BadZipFile):
        return False
