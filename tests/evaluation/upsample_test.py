from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.data.images.resolution import resize
from flowmatch_jax.evaluation import upsample
from flowmatch_jax.runtime.errors import RunStopped, UserError
from tests.evaluation.experiments import images, regression

ONE = jnp.ones(())
EULER = {"solver__method": "ab2", "solver__steps": 1, "condition__low_resolution": 4}


def to_the_condition(params, t, x, condition=None, **_):
    """v = c - x at t = 0: one step of Euler's ends in the condition, the bicubic enlargement."""
    return condition - x


def model(**fields):
    return images(apply=to_the_condition, **EULER, **fields)


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(height, width, seed=0):
    """Of the set's 17 levels, spread over uint8."""
    levels = np.random.RandomState(seed).randint(0, 17, (height, width))
    return np.round(levels * (255 / 16)).astype(np.uint8)


def bicubic(array):
    """What this model must make of a grey picture: its 17 levels enlarged, and rounded back."""
    levels = np.round(array / (255 / 16))[None, :, :, None]
    large = np.asarray(resize(levels, (2 * array.shape[0], 2 * array.shape[1])))[0, :, :, 0]
    return np.clip(np.floor(large + 0.5), 0, 16)


class PicturesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = Path(self.create_tempdir().full_path)
        self.input, self.output = folder / "in", folder / "out"

    def upsample(self, source=None, **fields):
        upsample.upsample_pictures(model(**fields), ONE, source or self.input, self.output)

    def made(self, name):
        array = np.asarray(Image.open(self.output / name))
        return array / (255 / 16)

    @parameterized.parameters((4, 4), (13, 22), (1, 1), (3, 9))
    def test_sizes(self, height, width):
        """Of one tile, of many, of less than one; nothing of tiles or padding is to be seen but
        within the filter's reach of the padded edges."""
        array = picture(height, width)
        path = write(self.input / "a.png", array)
        self.upsample(path)
        made = self.made("a.png")
        self.assertEqual(made.shape, (2 * height, 2 * width))
        inner = slice(0, 2 * height - 6), slice(0, 2 * width - 6)
        np.testing.assert_allclose(made[inner], bicubic(array)[inner], atol=1.01)

    def test_methods_without_a_field(self):
        array = picture(9, 7)
        path = write(self.input / "a.png", array)
        upsample.upsample_pictures(regression(), ONE, path, self.output)
        np.testing.assert_allclose(self.made("a.png")[:12, :8], bicubic(array)[:12, :8], atol=1.01)

    def test_all_of_a_folder_by_the_same_names(self):
        write(self.input / "a.png", picture(5, 6))
        write(self.input / "b" / "c.jpg", picture(8, 4))
        write(self.input / "d.webp", np.dstack([picture(4, 4)] * 3), lossless=True)
        (self.input / "notes.txt").write_text("no picture")
        self.upsample()
        found = {path.relative_to(self.output).as_posix() for path in self.output.rglob("*.png")}
        self.assertEqual(found, {"a.png", "b/c.png", "d.png"})
        self.assertEqual(Image.open(self.output / "d.png").mode, "L")  # the model's channels

    def test_the_same_whatever_is_beside_it(self):
        alone = write(self.input / "z.png", picture(6, 6))
        self.upsample(alone)
        first = self.made("z.png")
        write(self.input / "a.png", picture(7, 5, seed=1))
        self.upsample()
        np.testing.assert_array_equal(self.made("z.png"), first)

    def test_transparent_pixels_lie_on_the_background(self):
        clear = np.zeros((4, 4, 4), np.uint8)
        self.upsample(write(self.input / "a.png", clear))
        np.testing.assert_array_equal(self.made("a.png"), 16)
        self.upsample(self.input / "a.png", data__folder__background="black")
        np.testing.assert_array_equal(self.made("a.png"), 0)

    def test_unreadable_pictures_are_told_and_the_others_done(self):
        for name in ("a.png", "c.png"):
            write(self.input / name, picture(4, 4))
        (self.input / "b.jpg").write_bytes(b"no picture")
        (self.input / "d.png").write_bytes((self.input / "a.png").read_bytes()[:40])
        stops = self.assertRaisesRegex(RunStopped, "2 of 4 pictures")
        with self.assertLogs("flowmatch_jax", "ERROR") as told, stops:
            self.upsample()
        self.assertLen(told.output, 2)
        self.assertIn("b.jpg cannot be read: it is no PNG, JPEG or WebP", told.output[0])
        self.assertEqual({path.name for path in self.output.iterdir()}, {"a.png", "c.png"})


class MistakesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.picture = write(self.folder / "in" / "a.png", picture(4, 4))

    @parameterized.parameters(
        ("none", "out", "--input: got '.*none'; there is no such picture"),
        ("empty", "out", "--input: got '.*empty'; there is no image in it"),
        ("in", "in", "--output: got '.*in'; it lies in --input"),
        ("in", "in/out", "--output: got '.*out'; it lies in --input"),
        ("in/a.png", "in", "--output: got '.*in'; it would overwrite .*a.png"),
        ("in", "file", "--output: got '.*file'; it cannot be made a folder"),
    )
    def test_places(self, source, output, message):
        (self.folder / "empty").mkdir()
        (self.folder / "file").write_text("")
        with self.assertRaisesRegex(UserError, message):
            upsample.plan(self.folder / source, self.folder / output)

    def test_two_of_one_name(self):
        write(self.folder / "in" / "a.jpg", picture(4, 4))
        with self.assertRaisesRegex(UserError, "--input: got .*a.jpg and .*a.png'; both would"):
            upsample.plan(self.folder / "in", self.folder / "out")

    @parameterized.parameters(
        ({}, "config.condition.low_resolution: got None"),
        (
            {
                "condition__low_resolution": 4,
                "condition__labels": True,
                "guidance__scale": 2.0,
            },
            "config.guidance.scale: got 2.0; pictures come without a label",
        ),
    )
    def test_models(self, fields, message):
        with self.assertRaisesRegex(UserError, message):
            upsample.upsample_pictures(images(**fields), ONE, self.picture, self.folder / "out")


if __name__ == "__main__":
    absltest.main()
