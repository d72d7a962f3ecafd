import json
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from flowmatch_jax.metrics import compare
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.runtime.errors import UserError
from tests.metrics.commands import pictures, run, table

DIGITS = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
A, B = DIGITS[:90], DIGITS[90:200]


def features(x):
    """Pixels at the centres of their bins."""
    return (2 * x.reshape(len(x), -1).astype(np.float64) + 1) / 256 - 1


def frechet(a, b):
    """The trace of a root of S_a S_b is the sum of the roots of its eigenvalues."""
    roots = np.sqrt(np.abs(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))))
    spread = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * roots.sum()
    return np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + spread


def kernel(a, b, size):
    """Mean and standard error of the unbiased squared MMD of random subsets."""
    rng, values = np.random.RandomState(0), []
    for _ in range(100):
        x, y = (z[rng.choice(len(z), size, replace=False)] for z in (a, b))
        xx, yy, xy = ((p @ q.T / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        others = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k in (xx, yy)]
        values.append(sum(others) - 2 * xy.mean())
    return np.mean(values), np.std(values, ddof=1) / 10


def within(x, centres):
    """Fraction of x as near to a centre as its third nearest other centre is."""
    radii = np.sort(cdist(centres, centres))[:, 3]
    return np.mean((cdist(x, centres) <= radii).any(axis=1))


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = Path(self.create_tempdir().full_path)

    def sets(self, a=A, b=B):
        paths = self.root / "a.npy", self.root / "b.npz"
        np.save(paths[0], a)
        np.savez(paths[1], images=b, label=np.arange(len(b)))
        return paths

    def scores(self, *arguments):
        """Exact values, from the JSON file."""
        path = self.root / "scores.json"
        code, out, err = run(*arguments, f"--output={path}")
        self.assertEqual((code, err), (0, ""))
        found = json.loads(path.read_text())
        path.unlink()
        return found, out

    def error(self, message, *arguments):
        code, out, err = run(*arguments)
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, f"^error: {message}")
        self.assertLen(err.splitlines(), 1)

    def test_scores_of_pixels_are_those_of_numpy(self):
        found, out = self.scores(*self.sets(), "--extractor=pixels")
        a, b = features(A), features(B)
        self.assertAlmostEqual(found["fd_pixels"], frechet(a, b), places=6)
        mean, error = kernel(a, b, 45)
        self.assertAlmostEqual(found["kd_pixels"], mean, places=12)
        self.assertAlmostEqual(found["kd_pixels_standard_error"], error, places=12)
        self.assertEqual(found["precision_pixels"], within(a, b))
        self.assertEqual(found["recall_pixels"], within(b, a))
        self.assertEqual((found["images_in_A"], found["images_in_B"]), (90, 110))
        cells, notes = table(out)
        digits = max(0, 1 - int(np.floor(np.log10(error))))
        self.assertEqual(
            cells,
            {
                "Fréchet distance (pixels)": f"{found['fd_pixels']:.4g}",
                "kernel distance (pixels)": f"{mean:.{digits}f} +- {error:.{digits}f}",
                "precision (pixels)": f"{within(a, b):.4g}",
                "recall (pixels)": f"{within(b, a):.4g}",
                "images in A": "90",
                "images in B": "110",
            },
        )
        self.assertEmpty(notes)

    def test_folders_arrays_and_statistics_agree(self):
        a, b = self.sets()
        expected, _ = self.scores(a, b, "--extractor=pixels")
        folders = [pictures(self.root / name, x) for name, x in (("a", A), ("b", B))]
        with mock.patch.object(compare, "BATCH", 32):
            found, _ = self.scores(*folders, "--extractor=pixels")
        self.assertAlmostEqual(found.pop("fd_pixels"), expected["fd_pixels"], places=9)
        self.assertEqual(found, {name: expected[name] for name in found})
        saved = [self.root / "saved_a.npz", self.root / "saved_b.npz"]
        alone = run(b, f"--save={saved[1]}", "--extractor=pixels")[1]
        self.assertEqual(alone.splitlines()[0], "images in A  110")
        self.assertIn(f"The statistics of A are in {saved[1]}.", alone)
        self.scores(a, b, f"--save={saved[0]}", "--extractor=pixels")
        for sets in ((a, saved[1]), (saved[0], b), saved):
            found, _ = self.scores(*sets, "--extractor=pixels")
            self.assertEqual(
                found,
                {name: expected[name] for name in ("images_in_A", "images_in_B", "fd_pixels")},
            )

    def test_published_statistics(self):
        """They tell neither their number nor their extractor."""
        a, _ = self.sets()
        x = features(B)
        np.savez(self.root / "stats.npz", mu=x.mean(axis=0), sigma=np.cov(x.T))
        found, out = self.scores(a, self.root / "stats.npz", "--extractor=pixels")
        self.assertAlmostEqual(found["fd_pixels"], frechet(features(A), x), places=6)
        self.assertIsNone(found["images_in_B"])
        self.assertEqual(table(out)[0]["images in B"], "-")

    def test_scores_that_are_asked_for(self):
        found, _ = self.scores(*self.sets(), "--extractor=pixels", "--scores=precision_recall")
        self.assertCountEqual(
            found,
            ["fd_pixels", "precision_pixels", "recall_pixels", "images_in_A", "images_in_B"],
        )
        found, _ = self.scores(*self.sets(), "--extractor=pixels", "--scores=")
        self.assertCountEqual(found, ["fd_pixels", "images_in_A", "images_in_B"])

    def test_a_network_of_known_features_and_classes(self):
        """Gaussian features; the logits of an image, which is one of ten classes in order."""
        rng = np.random.RandomState(0)
        known = rng.randn(200, 3) * [1, 2, 3] + [1, 0, 0]
        logits = 100 * np.eye(10)[np.arange(200) // 20]

        def apply(x):
            index = np.asarray(x)[:, 0, 0, 0]
            return known[index].astype(np.float32), logits[index].astype(np.float32)

        a = np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
        net = Extractor("efficientnet_lite0", 96, 3, "", apply)
        with mock.patch.object(compare, "load_extractor", return_value=net):
            found, _ = self.scores(*self.sets(a, a[:100]))
        known = known.astype(np.float32)
        distance = frechet(known, known[:100])
        self.assertAlmostEqual(found["fd_efficientnet_lite0"], distance, places=5)
        order = np.random.RandomState(0).permutation(200)
        splits = logits[order].argmax(axis=1).reshape(10, 20)
        q = [np.bincount(part, minlength=10) / 20 for part in splits]
        score = np.exp([-np.sum(p[p > 0] * np.log(p[p > 0])) for p in q])
        self.assertAlmostEqual(found["is_efficientnet_lite0"], score.mean(), places=5)
        self.assertAlmostEqual(found["is_efficientnet_lite0_std"], score.std(), places=5)

    def test_efficientnet(self):
        """A set against itself; few images are warned of."""
        a, _ = self.sets(A[:16])
        folder = pictures(self.root / "a", A[:16])
        found, out = self.scores(a, folder, "--scores=inception_score")
        self.assertAlmostEqual(found["fd_efficientnet_lite0"], 0, places=6)
        self.assertBetween(found["is_efficientnet_lite0"], 1, 4)
        self.assertIn("16 images in A are too few for 1280 features", table(out)[1][0])

    def test_sets_that_do_not_fit(self):
        a, b = self.sets()
        other = self.root / "other.npy"
        np.save(other, A[:, :4])
        message = r"B: got '.*other.npy of images \(4, 8, 1\)'; the samples are \(8, 8, 1\)"
        self.error(message, a, other, "--extractor=pixels")
        self.error(message, a, other)
        run(a, f"--save={self.root / 'p.npz'}", "--extractor=pixels")
        stats = self.root / "p.npz"
        message = "A: got '.*p.npz of pixels'; the extractor is efficientnet_lite0"
        self.error(message, stats, b)
        self.error(message, stats, stats)
        np.savez(self.root / "q.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        message = "A: got '.*q.npz of 2048 features'; efficientnet_lite0 has 1280"
        self.error(message, self.root / "q.npz", self.root / "q.npz")
        np.savez(self.root / "r.npz", mu=np.zeros(64), sigma=np.eye(3))
        self.error("B: got '.*r.npz'; it must hold mu", a, self.root / "r.npz")

    def test_extractors_that_do_not_fit(self):
        a, b = self.sets()
        self.error("--extractor: got 'vgg'; it may be one of", a, b, "--extractor=vgg")
        self.error("--weights_file: got None; name the file", a, b, "--extractor=inception")
        four = self.root / "four.npy"
        np.save(four, np.zeros((9, 8, 8, 4), np.uint8))
        self.error("--extractor: got 'efficientnet_lite0'; .*four.npy has 4 channels", a, four)
        large = self.root / "large.npy"
        np.save(large, np.zeros((9, 128, 128, 1), np.uint8))
        self.error("--extractor: got 'pixels'; .* too many", large, large, "--extractor=pixels")

    @parameterized.parameters(
        (1, "--scores=", "the Fréchet distance takes 2"),
        (3, "--scores=kernel_distance", "kernel_distance takes 4"),
        (3, "--size=8", "kernel_distance takes 4"),
    )
    def test_too_few_images(self, count, flag, message):
        sets = self.sets(b=B[:count])
        message = f"B: got '{count} images'; {message} images or more"
        self.error(message, *sets, "--extractor=pixels", flag)

    def test_scores_that_cannot_be(self):
        a, b = self.sets()
        pixels = "--extractor=pixels"
        self.error("--scores: got 'fid'; it may be one of", a, b, pixels, "--scores=fid")
        message = "--scores: got 'inception_score'; pixels have no class scores"
        self.error(message, a, b, pixels, "--scores=inception_score")
        run(b, f"--save={self.root / 's.npz'}", pixels)
        message = "--scores: got 'kernel_distance'; it takes images as A and B, not statistics"
        self.error(message, a, self.root / "s.npz", pixels, "--scores=kernel_distance")

    def test_mistakes_in_the_flags(self):
        a, b = self.sets()
        self.error("B: got None; give the set to compare A with", a)
        self.error("B: got None", a, "--pairs")
        self.error("--save: got 'x.txt'; give a name that ends in .npz", a, "--save=x.txt")
        self.error("--save: got .*b.npz'; it exists", a, f"--save={b}")
        absent = self.root / "absent" / "x.npz"
        self.error("--save: .* cannot be written", a, f"--save={absent}")
        self.error("--output: .*without B", a, "--save=x.npz", "--output=x.json")
        self.error("--size: got 0", a, b, "--size=0")
        self.error("--extractor: got 'pixels'; --pairs has no use for it", a, b, "--pairs",
                   "--extractor=pixels")  # fmt: skip
        self.error("argument: .*unrecognized", a, b, "--metric=fid")
        run(a, f"--save={self.root / 's.npz'}", "--extractor=pixels")
        self.error("--save: .*is a file of statistics already", self.root / "s.npz",
                   "--extractor=pixels", f"--save={self.root / 't.npz'}")  # fmt: skip

    def test_sets_that_cannot_be_read(self):
        a, _ = self.sets()
        empty = self.root / "empty"
        empty.mkdir()
        self.error("B: got '.*empty'; there is no image in it", a, empty)
        self.error("A: got '.*absent'; it does not exist", self.root / "absent", a)
        broken = pictures(self.root / "broken", B[:5])
        path = broken / "002.png"
        path.write_bytes(path.read_bytes()[:-30])
        self.error("B: got '.*002.png'; it cannot be read", a, broken, "--extractor=pixels")


class MeasureTest(absltest.TestCase):
    def test_a_short_batch_has_the_shape_of_the_others(self):
        """So that a network is compiled once."""
        shapes = []

        def apply(x):
            shapes.append(x.shape)
            return np.asarray(x, np.float64).reshape(len(x), -1), None

        path = Path(self.create_tempdir().full_path) / "a.npy"
        np.save(path, A)
        net = Extractor("pixels", 8, 64, "", apply)
        with mock.patch.object(compare, "BATCH", 40):
            found = compare.measure(compare.open_images(path), net, keep_features=True)
        self.assertEqual(shapes, 3 * [(40, 8, 8, 1)])
        np.testing.assert_array_equal(found.features, A.reshape(90, 64))
        np.testing.assert_allclose(found.moments.mean, A.reshape(90, 64).mean(axis=0))
        self.assertIsNone(found.logits)

    def test_errors_are_user_errors_in_a_script(self):
        with self.assertRaisesRegex(UserError, "A: got 'absent'"):
            compare.open_sets({"A": Path("absent")}, "pixels", None, None)


if __name__ == "__main__":
    absltest.main()
