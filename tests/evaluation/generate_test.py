import dataclasses
from pathlib import Path
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation import generate
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.sampling.linear import of_method
from tests.evaluation import experiments

ONE = jnp.ones(())
NAMES = ("zero", "one", "T-shirt/top", *(f"class {i}" for i in range(3, 10)))
EULER = {"solver__method": "ab2", "solver__steps": 1}  # whose first step is Euler's


def by_label(params, t, x, label=None, **_):
    """One step of Euler's from x0 ends in a constant picture of the label's grey."""
    return (2 * label[:, None, None, None] + 1) / 17 - 1 - x


def unlabelled(**fields):
    """Samples are the noise."""
    return experiments.images(**EULER | fields)


def labelled(**fields):
    return experiments.images(apply=by_label, condition__labels=True, **EULER, **fields)


def noise(seeds, shape=(8, 8, 1)):
    return np.stack([draw_source(jax.random.key(seed), shape, 1.0) for seed in seeds])


def as_bytes(x):
    """The 17 levels of the data, spread over 0 to 255."""
    return np.round(np.asarray(quantise(x, 17)) * (255 / 16)).astype(np.uint8)


class GenerateTest(parameterized.TestCase):
    samplers: ClassVar = {}  # each is compiled once

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        make = generate.make_seeded_sampler
        cached = lambda e: self.samplers.get(id(e)) or self.samplers.setdefault(id(e), make(e))  # noqa: E731
        self.enter_context(mock.patch.object(generate, "make_seeded_sampler", cached))

    def generate(self, experiment, seeds, classes=(), name="out", step=3):
        output = self.folder / name
        generate.generate_samples(experiment, ONE, seeds, classes, output, {"step": step})
        return output

    def files(self, output):
        return sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))

    def test_pictures_are_those_of_their_seeds(self):
        seeds = [0, 3, *range(10, 20)]  # more than a batch of eight
        output = self.generate(unlabelled(), seeds)
        self.assertEqual(self.files(output), [f"{seed:06d}.png" for seed in seeds])
        expected = as_bytes(noise(seeds))[..., 0]
        got = [np.asarray(Image.open(output / f"{seed:06d}.png")) for seed in seeds]
        np.testing.assert_array_equal(got, expected)

    def test_archive(self):
        seeds = range(20)
        with np.load(self.generate(unlabelled(), seeds, name="out.npz")) as archive:
            self.assertEqual(set(archive), {"images", "seed", "settings"})
            self.assertEqual(archive["images"].dtype, np.uint8)
            np.testing.assert_array_equal(archive["images"], as_bytes(noise(seeds)))
            np.testing.assert_array_equal(archive["seed"], seeds)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["out.npz"])

    def test_points(self):
        experiment = experiments.points(**EULER)
        with np.load(self.generate(experiment, range(3), name="out.npz")) as archive:
            np.testing.assert_allclose(archive["points"], 1.5 * noise(range(3), (2,)), rtol=1e-6)
        with self.assertRaisesRegex(UserError, "output.*npz"):
            self.generate(experiment, range(3))

    def test_classes_by_number_and_name(self):
        experiment = labelled()
        data = dataclasses.replace(experiment.train_data, classes=NAMES)
        experiment = dataclasses.replace(experiment, train_data=data)
        output = self.generate(experiment, [5, 6], ["T-shirt/top", "9"])
        folders = ("2_T-shirt-top", "9_class-9")
        wanted = [f"{folder}/{seed:06d}.png" for folder in folders for seed in (5, 6)]
        self.assertEqual(self.files(output), wanted)
        for name in wanted:
            grey = round(int(name[0]) * 255 / 16)
            np.testing.assert_array_equal(np.asarray(Image.open(output / name)), grey)
        with self.assertRaisesRegex(UserError, "classes.*'ten'.*0 to 9.*T-shirt/top"):
            self.generate(experiment, [5], ["ten"])

    def test_classes_that_were_left_out_of_training(self):
        experiment = labelled()
        data = dataclasses.replace(experiment.train_data, label=np.resize([3, 8], 1500))
        experiment = dataclasses.replace(experiment, train_data=data)
        self.assertEqual(generate.list_items(experiment, [0], ["8"])[0].label, 8)
        with self.assertRaisesRegex(UserError, "classes: got 5; .*no digits of this class"):
            generate.list_items(experiment, [0], ["5"])
        drawn = {item.label for item in generate.list_items(experiment, range(20), ())}
        self.assertEqual(drawn, {3, 8})

    def test_frequencies_of_drawn_classes(self):
        """Each count is within five standard errors of the training set's frequency."""
        experiment, n = labelled(), 4000
        labels = [item.label for item in generate.list_items(experiment, range(n), ())]
        counts = np.bincount(experiment.train_data.label, minlength=10)
        p = counts / counts.sum()
        deviation = np.abs(np.bincount(labels, minlength=10) - n * p)
        np.testing.assert_array_less(deviation, 5 * np.sqrt(n * p * (1 - p)))

    @parameterized.parameters("out", "out.npz")
    def test_goes_on_where_it_was_stopped(self, name):
        experiment, drawn = unlabelled(), []
        draw_batch = generate._draw_batch

        def fail_at_second(*arguments):
            drawn.append(arguments[3])
            if len(drawn) == 2:
                raise RunStopped("stopped")
            return draw_batch(*arguments)

        with mock.patch.object(generate, "_draw_batch", fail_at_second):
            with self.assertRaisesRegex(RunStopped, "stopped"):
                self.generate(experiment, range(20), name=name)
            output = self.generate(experiment, range(20), name=name)
            again = len(drawn)
            self.generate(experiment, range(20), name=name)
        first = [item.seed for batch in (drawn[0], *drawn[2:]) for item in batch]
        self.assertEqual((sorted(first), len(drawn)), ([*range(20)], again))
        whole = self.generate(experiment, range(20), name=f"whole_{name}")
        if name == "out.npz":
            with np.load(output) as got, np.load(whole) as expected:
                np.testing.assert_array_equal(got["images"], expected["images"])
        else:
            self.assertEqual(self.files(output), self.files(whole))

    def test_more_seeds_are_added(self):
        self.generate(unlabelled(), range(3))
        output = self.generate(unlabelled(), range(5))
        self.assertLen(self.files(output), 5)

    @parameterized.parameters("out", "out.npz")
    def test_others_are_not_overwritten(self, name):
        output = self.generate(unlabelled(), range(3), name=name)
        seen = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        attempts = [
            lambda: self.generate(unlabelled(), range(3), name=name, step=4),
            lambda: self.generate(unlabelled(solver__steps=2), range(3), name=name),
        ]
        if name == "out.npz":
            attempts.append(lambda: self.generate(unlabelled(), range(4), name=name))
        for attempt in attempts:
            with self.assertRaisesRegex(UserError, f"output.*{output.name}"):
                attempt()
        for path, content in seen.items():
            self.assertEqual(path.read_bytes(), content)

    def test_samples_by_a_solver_that_is_fitted_again_are_others(self):
        by = lambda *t: dataclasses.replace(points, fitted=of_method("euler", np.array(t)))  # noqa: E731
        points = experiments.points(solver__method="fitted", solver__steps=2)
        for _ in range(2):
            self.generate(by(0, 0.5, 1), range(2), name="out.npz")
        with self.assertRaisesRegex(UserError, "output.*out.npz"):
            self.generate(by(0, 0.4, 1), range(2), name="out.npz")

    def test_samples_by_other_steps_of_sr3_are_others(self):
        sr3 = {"objective__name": "sr3", "objective__predicts": "noise", "path__name": "vp"}
        for _ in range(2):
            self.generate(experiments.images(**sr3, sr3__steps=2), range(2))
        with self.assertRaisesRegex(UserError, "output.*out"):
            self.generate(experiments.images(**sr3, sr3__steps=3), range(2))

    def test_folder_of_something_else(self):
        (self.folder / "out").mkdir()
        (self.folder / "out" / "letter.txt").write_text("mine")
        with self.assertRaisesRegex(UserError, "other files"):
            self.generate(unlabelled(), range(3))

    def test_refused(self):
        np.savez(self.folder / "mine.npz", x=np.zeros(3))
        with self.assertRaisesRegex(UserError, "holds no samples"):
            self.generate(unlabelled(), [0], name="mine.npz")
        with self.assertRaisesRegex(UserError, "a folder"):
            self.generate(unlabelled(), [0], name="out.tar")
        with self.assertRaisesRegex(UserError, "no classes"):
            self.generate(unlabelled(), [0], ["3"])
        with self.assertRaisesRegex(UserError, "upsample"):
            self.generate(experiments.regression(), [0])

    def test_field_that_is_not_finite(self):
        experiment = experiments.images(rate=np.nan, **EULER)
        with self.assertRaisesRegex(RunStopped, "seeds 0 to 2"):
            self.generate(experiment, range(3))


if __name__ == "__main__":
    absltest.main()
