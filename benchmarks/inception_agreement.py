"""Agreement of Inception's features and logits with torch-fidelity's, for the same weights.

    pip install -r requirements-bench.txt  # and the command in it
    python -m benchmarks.inception_agreement

The weights are random (no package has the published ones), saved by torch.save in both formats and
read back; the images are scikit-learn's two photographs in several sizes. Results are the largest
difference divided by the largest absolute value. The difference between the features of the two
photographs is given for scale.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.random_inception import random_inception
from benchmarks.timing import write
from flowmatch_jax.metrics.features.inception import load_inception

if importlib.util.find_spec("torchvision") is None:
    # torch-fidelity imports it for its other networks and its datasets.
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = mock.MagicMock()
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

SIZES = ((32, 32), (64, 64), (128, 128), (299, 299), (640, 427))  # width, height


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def main() -> None:
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    state = {name: torch.from_numpy(array) for name, array in random_inception().items()}
    record = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        for file_format, zipped in (("zip", True), ("legacy", False)):
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            outputs = ["2048", "logits_unbiased"]
            peer = FeatureExtractorInceptionV3("inception", outputs, str(path))
            extractor = load_inception(path, sha256=None)
            for size in SIZES:
                images = np.stack([np.asarray(image.resize(size)) for image in photographs])
                features, logits = extractor.apply(images)
                expected = [x.numpy() for x in peer(torch.from_numpy(images).permute(0, 3, 1, 2))]
                record[f"{file_format}, {size[1]} x {size[0]}"] = {
                    "features": difference(features, expected[0]),
                    "logits": difference(logits, expected[1]),
                    "features_of_the_two_images": difference(*expected[0]),
                }
    write(
        "inception_agreement",
        {
            "torch": torch.__version__,
            "torch_fidelity": importlib.metadata.version("torch-fidelity"),
            "largest_relative_difference": record,
        },
    )


if __name__ == "__main__":
    main()
