"""Features of images: functions (images, levels) -> [N, D], float64.

Images are integers in [0, levels), [N, H, W, C]: samples are quantised before they are judged, by
`pixels.quantise`.
"""

from __future__ import annotations

import numpy as np


def pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """The pixels themselves, each at the centre of its bin in [-1, 1]: for tiny images."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return (2 * flat + 1) / levels - 1


EXTRACTORS = {"pixels": pixels}
