import json
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from flowmatch_jax.metrics.pairs import open_pairs
from flowmatch_jax.runtime.errors import UserError
from tests.metrics.commands import pictures, run, table

RNG = np.random.RandomState(0)
X = RNG.randint(0, 256, (5, 14, 12, 3)).astype(np.uint8)
Y = np.clip(X + RNG.randint(-20, 20, X.shape), 0, 255).astype(np.uint8)


def expected(x, y):
    """scikit-image's mean PSNR and SSIM."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = list(zip(x, y, strict=True))
    likeness = [
        structural_similarity(a, b, channel_axis=-1, data_range=255, **options) for a, b in pairs
    ]
    return np.mean([peak_signal_noise_ratio(a, b) for a, b in pairs]), np.mean(likeness)


class PairsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = Path(self.create_tempdir().full_path)
        self.a, self.b = self.root / "a", self.root / "b"

    def scores(self):
        path = self.root / "scores.json"
        code, out, err = run(self.a, self.b, "--pairs", f"--output={path}")
        self.assertEqual((code, err), (0, ""))
        found = json.loads(path.read_text())
        path.unlink()
        return found, *table(out)

    def test_scikit_image(self):
        pictures(self.a, X)
        pictures(self.b / "further", X[:1])
        pictures(self.b, Y)
        found, cells, notes = self.scores()
        psnr, ssim = expected(X, Y)
        self.assertAlmostEqual(found["psnr"], psnr, places=10)
        self.assertAlmostEqual(found["ssim"], ssim, places=10)
        self.assertEqual(found["pairs"], 5)
        self.assertEqual(list(cells), ["PSNR (dB)", "SSIM", "pairs"])
        self.assertEqual(notes, ["1 of 6 pictures in B have no partner: further/000.png."])

    def test_a_suffix_does_not_matter_and_grey_is_compared_as_grey(self):
        """Of two grey pictures one channel counts, beside colours all three."""
        pictures(self.a, X[..., :1])
        pictures(self.b, Y[..., :1], ".webp")
        decoded = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(self.b.iterdir())]
        found, *_ = self.scores()
        grey = np.repeat(X[..., :1], 3, axis=-1)
        self.assertAlmostEqual(found["psnr"], expected(grey, decoded)[0], places=10)
        self.assertAlmostEqual(found["ssim"], expected(grey, decoded)[1], places=10)

    def test_pairs_may_have_different_sizes(self):
        pictures(self.a, X[:2])
        pictures(self.b, Y[:2])
        for folder, x in ((self.a, X), (self.b, Y)):
            Image.fromarray(x[2, :11, :11]).save(folder / "small.png")
        found, *_ = self.scores()
        scores = [expected(X[:2], Y[:2]), expected(X[2:3, :11, :11], Y[2:3, :11, :11])]
        mean = np.average(scores, axis=0, weights=[2, 1])
        np.testing.assert_allclose([found["psnr"], found["ssim"]], mean, rtol=1e-10)

    def test_scores_that_are_not_there(self):
        pictures(self.a, X[:, :8])
        pictures(self.b, np.concatenate([X[:1, :8], Y[1:, :8]]))
        found, cells, notes = self.scores()
        self.assertEqual((found["psnr"], found["ssim"]), (None, None))
        self.assertEqual((cells["PSNR (dB)"], cells["SSIM"]), ("-", "-"))
        self.assertRegex("\n".join(notes), "PSNR is infinite.\nA picture is smaller than 11")

    def test_what_it_refuses(self):
        pictures(self.a, X)
        pictures(self.b, Y[:, :13])
        with self.assertRaisesRegex(UserError, r"B: got .*b/000.png of \(13, 12\) pixels"):
            open_pairs(self.a, self.b)
        with self.assertRaisesRegex(UserError, "B: .*there is no such folder"):
            open_pairs(self.a, self.root / "absent")
        pictures(self.root / "c" / "deeper", Y)
        with self.assertRaisesRegex(UserError, "none of its pictures, such as deeper/000.png"):
            open_pairs(self.a, self.root / "c")
        Image.fromarray(X[0]).save(self.a / "000.jpg")
        with self.assertRaisesRegex(UserError, "A: .*000.jpg and .*000.png'; both have one name"):
            open_pairs(self.a, self.b)

    def test_a_damaged_picture(self):
        for folder, x in ((self.a, X), (self.b, Y)):
            pictures(folder, x)
        path = self.b / "003.png"
        path.write_bytes(path.read_bytes()[:-40])
        code, _, err = run(self.a, self.b, "--pairs")
        self.assertEqual(code, 2)
        self.assertRegex(err, "^error: .*b/003.png'; it cannot be read")


if __name__ == "__main__":
    absltest.main()
