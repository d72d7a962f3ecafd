import dataclasses
import operator
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation import samples
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import images

ONE = jnp.ones(())
CLASSES = {"condition__labels": True}
BOTH = {"condition__labels": True, "condition__low_resolution": 4}


class OneByOne:
    """Images that are read one at a time, as datasets that decode on access do."""

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[operator.index(i)]


class SourceTest(absltest.TestCase):
    def test_batches_begin_at_the_items_of_the_source(self):
        """In order and cyclically, at the centres of their bins, however they are kept."""
        whole = images().test_data
        for source in (whole, dataclasses.replace(whole, x=OneByOne(whole.x))):
            x0 = samples.source_batch(source, 8, 37)
            wanted = whole.x[[296, *range(7)]].astype(np.float32)
            np.testing.assert_allclose(x0, (2 * wanted + 1) / 17 - 1, rtol=1e-6)


class GivenTest(absltest.TestCase):
    def test_nothing_without_conditions(self):
        self.assertEqual(samples.sample_inputs(images(), 8), {})

    def test_sample_n_is_given_what_test_image_n_has(self):
        experiment = images(**BOTH)
        source = experiment.test_data
        # 37 batches of 8 are 296: the last image, then again from the first.
        for batch, wanted in ((0, range(8)), (2, range(16, 24)), (37, [296, *range(7)])):
            given = samples.sample_inputs(experiment, 8, batch)
            np.testing.assert_array_equal(given["label"], source.label[list(wanted)])
            condition = experiment.conditioning.inputs(source[list(wanted)])["condition"]
            np.testing.assert_array_equal(given["condition"], condition)

    def test_labels_alone_are_as_frequent_as_in_training(self):
        experiment = images(**CLASSES)
        wanted = np.bincount(experiment.train_data.label)
        given = [samples.sample_inputs(experiment, 500, batch)["label"] for batch in range(4)]
        np.testing.assert_array_equal(np.bincount(np.concatenate(given[:3])), wanted)
        np.testing.assert_array_equal(given[3], given[0])
        # A part of them is a sample: of 500 of a class of frequency p, 500 p +- sqrt(500 p (1-p)).
        p = wanted / wanted.sum()
        errors = (np.bincount(given[0], minlength=10) - 500 * p) / np.sqrt(500 * p * (1 - p))
        self.assertLess(np.abs(errors).max(), 4)

    def test_field_is_given_it(self):
        """Where v is the condition itself, samples are noise and condition."""
        apply = lambda params, t, x, label, condition: condition + label[:, None, None, None]  # noqa: E731
        experiment = images(apply=apply, **BOTH)
        x = samples.make_sampler(experiment, 8)(ONE, 3).x
        given = samples.sample_inputs(experiment, 8, 3)
        noise = draw_source(source_key(1, 3), (8, 8, 8, 1))
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
        original = np.round(experiment.test_data.x[0, :, :, 0] * (255 / 16))
        place = slice(3 * (side + gap), 3 * (side + gap) + side)
        np.testing.assert_array_equal(picture[:side:4, place][:, ::4], original)


def told_apart(params, t, x, label, **_):
    """Samples are noise and label / 10; without one, noise and 5."""
    return jnp.where(label < 0, 5.0, label / 10)[:, None, None, None] + 0 * x


class ClassesTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"evaluate__samples": 30}, [[c] * 3 for c in range(10)]),
        ({"evaluate__samples": 35}, [[c] * 3 for c in range(10)]),
        ({"evaluate__samples": 9}, [[c] * 3 for c in range(3)]),  # more classes than samples
        ({"evaluate__classes": (7, 2), "evaluate__samples": 8}, [[7] * 4, [2] * 4]),
        ({"data__classes": (8, 3), "evaluate__samples": 8}, [[3] * 4, [8] * 4]),
    )
    def test_rows(self, fields, expected):
        rows = samples.class_rows(images(**CLASSES, **fields))
        np.testing.assert_array_equal(rows, expected)

    def test_no_rows_without_classes_of_its_own(self):
        self.assertIsNone(samples.class_rows(images()))
        self.assertIsNone(samples.class_rows(images(**BOTH)))

    @parameterized.parameters((1.0, 1), (3.0, 2))
    def test_each_row_is_given_its_class(self, scale, calls):
        """Guidance goes from 5 to the label's by the scale; what is kept says the labels."""
        experiment = images(
            apply=told_apart,
            guidance__scale=scale,
            evaluate__classes=(7, 2),
            evaluate__samples=9,
            solver__method="euler",
            solver__steps=4,
            **CLASSES,
        )
        workdir = Path(self.create_tempdir().full_path)
        sampler = samples.make_sampler(experiment, 9)
        solution = samples.draw(experiment, sampler, workdir, "ema", ONE, 5, keep_arrays=True)
        self.assertEqual(solution.nfe, 4 * calls)
        name = "5_ema_guidance3_nfe8" if scale != 1 else "5_ema_nfe4"
        kept = np.load(workdir / "samples" / f"{name}.npz")
        np.testing.assert_array_equal(kept["label"], [7, 7, 7, 7, 2, 2, 2, 2])
        noise = draw_source(source_key(1), (9, 8, 8, 1))[:8]
        shift = 5 + scale * (kept["label"] / 10 - 5)
        np.testing.assert_allclose(kept["x"], noise + shift[:, None, None, None], atol=1e-4)
        picture = Image.open(workdir / "samples" / f"{name}.png")
        self.assertEqual(picture.size, (4 * 34 - 2, 2 * 34 - 2))


class NumberTest(parameterized.TestCase):
    @parameterized.parameters((3, 10), (1500, 1500), (60_000, 50_000))
    def test_as_many_as_training_images(self, items, expected):
        experiment = images(evaluate__generated=None)
        experiment = dataclasses.replace(experiment, train_data=range(items))
        self.assertEqual(samples.number_generated(experiment), expected)

    @parameterized.parameters(
        (None, 3, 3), (4, 300, 4), (400, 300, 300), (None, 300, 300), (None, 60_000, 50_000)
    )
    def test_at_most_the_items_of_a_source(self, given, items, expected):
        source = SimpleNamespace(test=range(items))
        experiment = dataclasses.replace(images(evaluate__generated=given), source=source)
        self.assertEqual(samples.number_generated(experiment), expected)

    def test_as_given(self):
        self.assertEqual(samples.number_generated(images(evaluate__generated=7)), 7)


if __name__ == "__main__":
    absltest.main()
