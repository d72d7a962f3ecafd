"""What the rest of the system knows of a data set: one split of it, item by item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Source:
    """A split of a data set, in memory.

    ``source[i]`` is {"x": ..., "label": ...}; the whole is what Grain calls a random-access source.

    Attributes:
        name, version, split: where the data comes from.
        x: images uint8 [N, H, W, C] with values in [0, levels), or points float32 [N, D].
        label: int32 [N] in [0, num_classes), or None.
        levels: grey levels of images; None for points.
        num_classes: None without labels.
        entropy: of the density, in nats, where it is known: minus the mean log-likelihood that a
            perfect model reaches.
    """

    name: str
    version: str
    split: str
    x: np.ndarray
    label: np.ndarray | None = None
    levels: int | None = None
    num_classes: int | None = None
    entropy: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item's x."""
        return self.x.shape[1:]

    @property
    def is_image(self) -> bool:
        return self.levels is not None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        item = {"x": self.x[i]}
        return item if self.label is None else {**item, "label": self.label[i]}
