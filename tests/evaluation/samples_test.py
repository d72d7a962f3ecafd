from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.evaluation import samples
from flowmatch_jax.sampling import draw_source
from tests.evaluation.experiments import images

ONE = jnp.ones(())
BOTH = {"condition__labels": True, "condition__low_resolution": 4}


class GivenTest(absltest.TestCase):
    def test_nothing_without_conditions(self):
        self.assertEqual(samples.sample_inputs(images(), 8), {})

    def test_sample_n_is_given_what_test_image_n_has(self):
        experiment = images(**BOTH)
        source = experiment.test_source
        # 37 batches of 8 are 296: the last image, then again from the first.
        for batch, wanted in ((0, range(8)), (2, range(16, 24)), (37, [296, *range(7)])):
            given = samples.sample_inputs(experiment, 8, batch)
            np.testing.assert_array_equal(given["label"], source.label[list(wanted)])
            condition = experiment.conditioning.inputs(source[list(wanted)])["condition"]
            np.testing.assert_array_equal(given["condition"], condition)

    def test_field_is_given_it(self):
        """Where v is the condition itself, samples are noise and condition."""
        apply = lambda params, t, x, label, condition: condition + label[:, None, None, None]  # noqa: E731
        experiment = images(apply=apply, **BOTH)
        x = samples.make_sampler(experiment, 8)(ONE, 3).x
        given = samples.sample_inputs(experiment, 8, 3)
        noise = draw_source(samples.sample_key(1, 3), (8, 8, 8, 1))
        expected = noise + given["condition"] + given["label"][:, None, None, None]
        np.testing.assert_allclose(x, expected, atol=1e-4)

    def test_picture_of_super_resolution(self):
        """16 times low resolution, bicubic, sample, original, two a row."""
        experiment = images(condition__low_resolution=4)
        workdir = Path(self.create_tempdir().full_path)
        sampler = samples.make_sampler(experiment, 16)
        samples.draw(experiment, sampler, workdir, "ema", ONE, 5)
        picture = np.asarray(Image.open(workdir / "samples" / "5_ema.png"))
        side, gap = 4 * 8, 2
        self.assertEqual(picture.shape, (8 * (side + gap) - gap, 8 * (side + gap) - gap))
        original = np.round(experiment.test_source.x[0, :, :, 0] * (255 / 16))
        place = slice(3 * (side + gap), 3 * (side + gap) + side)
        np.testing.assert_array_equal(picture[:side:4, place][:, ::4], original)


if __name__ == "__main__":
    absltest.main()
