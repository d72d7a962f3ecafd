"""The interface of a dataset split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np


class Images(Protocol):
    """Images by index: an array uint8 [N, H, W, C], or an object that decodes images on access."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset. ``source[i]`` is {"x": ..., "label": ...}.

    Attributes:
        name, version, split: identify the data.
        x: images uint8 [N, H, W, C] with values in [0, levels), or points float32 [N, D].
        label: int32 [N] in [0, num_classes), or None.
        levels: grey levels of images; None for points.
        num_classes: number of classes; None without labels.
        log_density: log-density of points where it is known, [N, D] -> [N] in nats.
        sha256: hash of the content where it is already known (prepared datasets and folders).
    """

    name: str
    version: str
    split: str
    x: np.ndarray | Images
    label: np.ndarray | None = None
    levels: int | None = None
    num_classes: int | None = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    sha256: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item's x."""
        return tuple(self.x.shape[1:])

    @property
    def is_image(self) -> bool:
        return self.levels is not None

    @cached_property
    def entropy(self) -> float | None:
        """The mean negative log-likelihood of these points under their own density, in nats."""
        return None if self.log_density is None else -float(np.mean(self.log_density(self.x)))

    @cached_property
    def content_hash(self) -> str:
        """The sha256 of the content; equal for equal data."""
        return self.sha256 or hashlib.sha256(np.ascontiguousarray(self.x)).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what a run records about its data: name, version, split, items, sha256."""
        which = {"name": self.name, "version": self.version, "split": self.split}
        return which | {"items": len(self), "sha256": self.content_hash}

    def zeros(self, n: int) -> dict[str, np.ndarray]:
        """Return a batch of n zero items with the dataset's shapes and dtypes."""
        x = np.zeros((n, *self.shape), np.uint8 if self.is_image else np.float32)
        return {"x": x} if self.label is None else {"x": x, "label": np.zeros(n, np.int32)}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        item = {"x": self.x[i]}
        return item if self.label is None else {**item, "label": self.label[i]}
