import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from flowmatch_jax.data.images import decode as images
from flowmatch_jax.runtime.errors import UserError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(data, **options):
    return np.asarray(images.decode(data, **options))


def png_of_size(side):
    """The beginning of a PNG that says it has so many pixels a side."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return data + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)


# Prints how often the picture was refused.
DECODE_IN_THREADS = """
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from flowmatch_jax.data.images.decode import decode

data = pathlib.Path(sys.argv[1]).read_bytes()

def refused(_):
    try:
        decode(data)
    except ValueError:
        return True

sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as pool:
    print(sum(map(bool, pool.map(refused, range(5000)))))
"""


def rgb_16_bits(values):
    """A PNG of 16-bit RGB, which Pillow cannot write; values uint16 [H, W, 3]."""
    height, width, _ = values.shape

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class DecodeTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.rgb = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)

    @parameterized.parameters("PNG", "WEBP")
    def test_lossless_rgb_is_itself(self, kind):
        data = encoded(Image.fromarray(self.rgb), kind, lossless=True)
        np.testing.assert_array_equal(array(data), self.rgb)

    def test_grey_becomes_three_equal_channels_and_back(self):
        grey = self.rgb[..., 0]
        data = encoded(Image.fromarray(grey))
        np.testing.assert_array_equal(array(data), np.stack([grey] * 3, axis=-1))
        np.testing.assert_array_equal(array(data, channels=1), grey)

    @parameterized.parameters("RGBA", "LA", "P")
    def test_transparent_pixels_show_the_background(self, mode):
        alpha = np.zeros((5, 7), np.uint8)
        alpha[:, :3] = 255
        image = Image.fromarray(np.dstack([self.rgb[..., :1].repeat(3, 2), alpha]))
        data = encoded(image.convert(mode))
        seen = array(data, background="#ff8000")
        np.testing.assert_array_equal(seen[:, 3:], np.broadcast_to([255, 128, 0], (5, 4, 3)))
        self.assertLess(np.abs(seen[:, :3].astype(int) - self.rgb[:, :3, :1]).max(), 8)

    def test_a_colour_declared_transparent(self):
        white = np.full((2, 2), 200, np.uint8)
        data = encoded(Image.fromarray(white), transparency=200)
        np.testing.assert_array_equal(array(data, background="black"), np.zeros((2, 2, 3)))

    def test_a_16_bit_grey_declared_transparent(self):
        values = np.array([[1000, 1001]], np.uint16)
        data = encoded(Image.fromarray(values), transparency=1001)
        np.testing.assert_array_equal(array(data, channels=1), [[1000 >> 8, 255]])

    def test_half_transparent_is_half_and_half(self):
        image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
        self.assertAlmostEqual(int(array(encoded(image))[0, 0, 0]), 127, delta=1)

    def test_cmyk_of_a_photograph_keeps_its_colours(self):
        photo = Image.fromarray(load_sample_images().images[0]).resize((64, 43))
        data = encoded(photo.convert("CMYK"), "JPEG", quality=95)
        self.assertEqual(Image.open(io.BytesIO(data)).mode, "CMYK")
        self.assertLess(np.abs(array(data).astype(int) - np.asarray(photo)).mean(), 5)

    def test_16_bits_keep_the_high_byte(self):
        values = np.random.RandomState(1).randint(0, 2**16, (4, 6, 3)).astype(np.uint16)
        np.testing.assert_array_equal(array(rgb_16_bits(values)), values >> 8)
        grey = encoded(Image.fromarray(values[..., 0]))
        np.testing.assert_array_equal(array(grey, channels=1), values[..., 0] >> 8)

    @parameterized.parameters("PNG", "WEBP")
    def test_the_first_frame_of_an_animation(self, kind):
        frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (10, 200)]
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        self.assertEqual(Image.open(io.BytesIO(data)).n_frames, 2)
        np.testing.assert_array_equal(array(data), np.full((4, 4, 3), 10))

    def test_photographs_are_turned_upright_where_asked(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        data = encoded(Image.fromarray(self.rgb), exif=exif)
        self.assertEqual(array(data).shape, (5, 7, 3))
        np.testing.assert_array_equal(array(data, upright=True), np.rot90(self.rgb, -1))

    def test_content_tells_the_kind(self):
        self.assertEqual(array(encoded(Image.fromarray(self.rgb), "JPEG")).shape, (5, 7, 3))
        bitmap = encoded(Image.fromarray(self.rgb), "BMP")
        for data in (b"", b"no picture", bitmap):
            with self.assertRaisesRegex(ValueError, "^it is no PNG, JPEG or WebP$"):
                images.decode(data)
        with self.assertRaises(Exception):  # noqa: B017 Pillow's own, of many kinds
            images.decode(encoded(Image.fromarray(self.rgb))[:60])

    def test_more_pixels_than_are_decoded(self):
        """13,000 x 13,000 took 4 GB; a file of a few kB may ask for it."""
        with self.assertRaisesRegex(ValueError, "13000 x 13000 pixels, more than 67,108,864"):
            images.decode(png_of_size(13_000))
        with self.assertRaisesRegex(ValueError, "it has more than 67,108,864 pixels"):
            images.decode(png_of_size(20_000))

    def test_pillow_warns_of_nothing_in_threads(self):
        """It would without naming the file."""
        path = self.create_tempfile(content=png_of_size(13_000), mode="wb").full_path
        done = subprocess.run(
            [sys.executable, "-c", DECODE_IN_THREADS, path],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "5000\n", ""))


class SquareTest(absltest.TestCase):
    def test_the_largest_centre_square(self):
        image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
        expected = np.arange(35).reshape(5, 7)[:, 1:6, None]
        np.testing.assert_array_equal(images.square(image, 5), expected)
        self.assertEqual(images.square(image, None).shape, (5, 7, 1))

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 99))
    def test_areas_are_averaged(self, size, factor, seed):
        side = size * factor
        pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3)).astype(np.uint8)
        means = pixels.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))
        got = images.square(Image.fromarray(pixels), size)
        self.assertLessEqual(np.abs(got - means).max(), 0.5 + 1e-4)

    def test_areas_of_fractional_pixels(self):
        image = Image.fromarray(np.array([[0, 90, 180]] * 3, np.uint8))
        # Each new pixel is 1.5 old ones wide: (0 + 90 / 2) / 1.5 and (90 / 2 + 180) / 1.5.
        np.testing.assert_array_equal(images.square(image, 2)[..., 0], [[30, 150]] * 2)

    def test_small_pictures_are_enlarged(self):
        flat = Image.new("RGB", (3, 3), (9, 8, 7))
        np.testing.assert_array_equal(images.square(flat, 8), np.full((8, 8, 3), (9, 8, 7)))


class ValidateTest(parameterized.TestCase):
    @parameterized.parameters(
        (0, 3, "white", "size: got 0"),
        (None, 4, "white", "channels: got 4; it may be 1"),
        (8, 3, "blurple", "background: got 'blurple'; it takes a colour"),
    )
    def test_wrong_values(self, size, channels, background, message):
        with self.assertRaisesRegex(UserError, message):
            images.validate(size, channels, background)

    def test_encode_is_lossless(self):
        for channels in (1, 3):
            pixels = np.random.RandomState(0).randint(0, 256, (4, 5, channels)).astype(np.uint8)
            image = images.decode(images.encode(pixels), channels)
            np.testing.assert_array_equal(images.square(image, None), pixels)


class ShapeTest(parameterized.TestCase):
    @parameterized.parameters(
        ("L", "PNG", 1), ("1", "PNG", 1), ("LA", "PNG", 1), ("I;16", "PNG", 1), ("P", "PNG", 3),
        ("RGB", "PNG", 3), ("RGBA", "PNG", 3), ("L", "JPEG", 1), ("CMYK", "JPEG", 3),
        ("RGB", "WEBP", 3),
    )  # fmt: skip
    def test_shape_of_a_header_is_that_of_the_picture(self, mode, kind, channels):
        path = Path(self.create_tempdir().full_path) / "picture"
        path.write_bytes(encoded(Image.new(mode, (7, 5)), kind))
        self.assertEqual(images.read_shape(path), (5, 7, channels))

    @parameterized.parameters(range(1, 9))
    def test_orientation(self, orientation):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = Path(self.create_tempdir().full_path) / "photo.jpg"
        path.write_bytes(encoded(Image.new("RGB", (7, 5)), "JPEG", exif=exif))
        upright = array(path.read_bytes(), upright=True)
        self.assertEqual(images.read_shape(path), upright.shape)


if __name__ == "__main__":
    absltest.main()
