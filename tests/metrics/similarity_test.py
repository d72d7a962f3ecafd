import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from flowmatch_jax.metrics.similarity import mean_and_error, psnr, ssim
from flowmatch_jax.runtime.errors import UserError


def pictures(shape, seed=0, noise=30):
    """Smooth uint8 pictures and noisy ones of them."""
    rng = np.random.RandomState(seed)
    smooth = np.cumsum(np.cumsum(rng.randn(*shape), axis=1), axis=2)
    a = np.clip(128 + 8 * smooth, 0, 255).astype(np.uint8)
    b = np.clip(a + noise * rng.randn(*shape), 0, 255).astype(np.uint8)
    return a, b


def constant(value, shape=(1, 12, 13, 2)):
    return np.full(shape, value, np.uint8)


class PsnrTest(parameterized.TestCase):
    def test_by_hand(self):
        """All off by 1: 20 log10 peak. One of four off by 2: the same mean."""
        a, b = constant(7, (2, 2, 2, 1)), constant(8, (2, 2, 2, 1))
        b[1] = [[[7], [9]], [[7], [7]]]
        np.testing.assert_allclose(psnr(a, b), 2 * [20 * np.log10(255)], rtol=1e-14)
        np.testing.assert_allclose(psnr(a, b, peak=16), 2 * [20 * np.log10(16)], rtol=1e-14)

    def test_equal_images_are_infinitely_good(self):
        a, b = pictures((2, 12, 12, 3))
        b[1] = a[1]
        self.assertEqual(list(np.isinf(psnr(a, b))), [False, True])

    @parameterized.parameters(np.uint8, np.float32, np.float64)
    def test_scikit_image(self, dtype):
        a, b = (x.astype(dtype) for x in pictures((4, 20, 17, 3)))
        expected = [
            peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-6)


class SsimTest(parameterized.TestCase):
    @parameterized.parameters((0, 255), (10, 20), (200, 200))
    def test_constant_images(self, x, y):
        """No variance: the luminance alone, with C_1 = 2.55^2."""
        c = 2.55**2
        expected = (2 * x * y + c) / (x**2 + y**2 + c)
        np.testing.assert_allclose(ssim(constant(x), constant(y)), [expected], atol=1e-10)

    def test_one_window(self):
        """11 x 11 images: moments under the Gaussian of sigma 1.5, written out."""
        a, b = pictures((1, 11, 11, 1))
        x, y = a[0, :, :, 0].astype(float), b[0, :, :, 0].astype(float)
        i, j = np.mgrid[-5:6, -5:6]
        w = np.exp(-(i**2 + j**2) / 4.5)
        w /= w.sum()
        mx, my = np.sum(w * x), np.sum(w * y)
        vx, vy = np.sum(w * (x - mx) ** 2), np.sum(w * (y - my) ** 2)
        cov, c1, c2 = np.sum(w * (x - mx) * (y - my)), 2.55**2, 7.65**2
        expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        np.testing.assert_allclose(ssim(a, b), [expected], rtol=1e-10)

    @parameterized.product(shape=[(3, 11, 11, 3), (2, 32, 32, 1), (2, 40, 23, 3)], peak=[255, 300])
    def test_scikit_image(self, shape, peak):
        a, b = pictures(shape)
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = [
            structural_similarity(x, y, data_range=peak, channel_axis=-1, **window)
            for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(ssim(a, b, peak), expected, rtol=1e-10)
        floats = ssim(a.astype(np.float32), b.astype(np.float32), peak)
        np.testing.assert_array_equal(floats, ssim(a, b, peak))

    def test_negatives(self):
        a, _ = pictures((1, 32, 32, 1))
        self.assertLess(ssim(a, 255 - a)[0], 0)


class BothTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 1000), n=st.integers(1, 4), channels=st.sampled_from([1, 3]))
    def test_laws(self, seed, n, channels):
        """Symmetric; image by image; no matter how turned, or channels ordered; best if equal."""
        a, b = pictures((n, 14, 16, channels), seed)
        for measure, best in ((psnr, np.inf), (ssim, 1)):
            expected = measure(a, b)
            self.assertEqual(expected.shape, (n,))
            others = [
                measure(b, a),
                np.concatenate([measure(x[None], y[None]) for x, y in zip(a, b, strict=True)]),
                measure(a.swapaxes(1, 2), b.swapaxes(1, 2)),
                measure(a[:, ::-1, :, ::-1], b[:, ::-1, :, ::-1]),
            ]
            for other in others:
                np.testing.assert_allclose(other, expected, rtol=1e-9)
            np.testing.assert_allclose(measure(a, a), n * [best], rtol=1e-12)

    def test_peak_is_a_scale(self):
        a, b = pictures((2, 16, 16, 1))
        for measure in (psnr, ssim):
            np.testing.assert_allclose(measure(a / 255, b / 255, peak=1), measure(a, b), rtol=1e-9)

    @parameterized.product(
        [{"measure": psnr}, {"measure": ssim}],
        [
            {"a": np.zeros((0, 12, 12, 1)), "message": "^a: .* N must be 1"},
            {"a": np.zeros((12, 12, 1)), "message": "^a: .* shape must be"},
            {"a": np.zeros((2, 12, 12, 1)), "message": "^b: .* a's shape"},
            {"a": np.full((1, 12, 12, 1), np.nan), "message": "^a: .*144 values"},
        ],
    )
    def test_what_they_refuse(self, measure, a, message):
        with self.assertRaisesRegex(UserError, message):
            measure(a, np.zeros((1, 12, 12, 1)))

    def test_no_room_for_the_window(self):
        a = np.zeros((1, 10, 12, 1))
        with self.assertRaisesRegex(UserError, "^a: .* H and W must be 11"):
            ssim(a, a)
        self.assertEqual(psnr(a, a), [np.inf])


class MeanTest(absltest.TestCase):
    def test_mean_and_standard_error(self):
        found = mean_and_error("psnr", np.array([20.0, 22.0, 27.0]))
        self.assertAlmostEqual(found["psnr"], 23)
        self.assertAlmostEqual(found["psnr_standard_error"], np.sqrt(13 / 3))
        one = mean_and_error("ssim", np.array([0.5]))
        self.assertEqual(one, {"ssim": 0.5, "ssim_standard_error": None})
        none = mean_and_error("psnr", np.array([20.0, np.inf]))
        self.assertEqual(none, {"psnr": None, "psnr_standard_error": None})


if __name__ == "__main__":
    absltest.main()
