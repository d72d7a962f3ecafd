"""Tensors of a file, which are read when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        read: reads it; the array may be read-only.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
