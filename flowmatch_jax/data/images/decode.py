"""Encoded pictures -> uint8 arrays, by Pillow. What becomes of each kind of file:

- transparent pixels (RGBA, LA, palette or tRNS): laid on a background;
- CMYK JPEGs: to RGB by Pillow's conversion, without colour profiles;
- 16-bit grey: the high byte of each value, as Pillow reads 16-bit RGB;
- animations (GIF-like WebP, APNG): the first frame;
- photographs with an EXIF orientation: turned upright, where asked.

The kind of a file is told by its content, whatever its suffix says.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from flowmatch_jax.runtime.errors import UserError, at_least

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST = 2**26  # pixels of a picture: 8192 x 8192, for which decoding takes up to 1.7 GB
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name

# Pillow warns beyond its limit, which is higher than LARGEST, without naming the file. For good and
# not around a call: what `warnings.catch_warnings` sets, threads that decode would undo for others.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def validate(size: int | None, channels: int, background: str) -> None:
    """Raise UserError unless these describe how pictures become arrays."""
    if size is not None:
        at_least("size", size, 1)
    if channels not in MODES:
        raise UserError("channels", channels, "it may be 1 (grey) or 3 (RGB)")
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        allowed = "it takes a colour's name or #rrggbb"
        raise UserError("background", background, allowed) from error


def decode(
    data: bytes, channels: int = 3, background: str = "white", upright: bool = False
) -> Image.Image:
    """An encoded picture as grey (channels 1) or RGB (3), 8 bits.

    Args:
        background: behind transparent pixels.
        upright: turn by the EXIF orientation.

    Raises:
        ValueError: it is of another format, or has more than LARGEST pixels.
        Exception: of many kinds, where the data is damaged; Pillow's decoders say no more.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("it is no PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {LARGEST:,} pixels; make it smaller") from error
    if image.width * image.height > LARGEST:
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"it has {size}, more than {LARGEST:,} in all; make it smaller")
    image.load()
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion clips
        values = np.asarray(image)
        alpha = np.where(values == image.info.get("transparency", -1), 0, 255)
        image = Image.fromarray(np.dstack([values >> 8, alpha]).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(MODES[channels])


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """The largest centre square, uint8 [size, size, C].

    Made smaller by `average_areas`, larger by bicubic interpolation. Without a size the picture
    stays as it is, [H, W, C].
    """
    if size is not None:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        if side < size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    array = array if array.ndim == 3 else array[:, :, None]
    return array if size is None or len(array) == size else average_areas(array, size)


def average_areas(array: np.ndarray, size: int) -> np.ndarray:
    """uint8 [S, S, C] -> [size, size, C]: each new pixel is the mean of the area it covers.

    Old pixels at its edge count by the part that is covered. (Pillow's box filter counts them
    whole, which is the same where size divides S.)
    """
    side = len(array)
    edges, old = np.arange(size + 1) * (side / size), np.arange(side)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights = (np.maximum(covered, 0) * (size / side)).astype(np.float32)
    means = np.einsum("ih,jw,hwc->ijc", weights, weights, array.astype(np.float32), optimize=True)
    return np.rint(means).astype(np.uint8)


def encode(array: np.ndarray) -> bytes:
    """uint8 [H, W, C] as PNG, C in {1, 3}."""
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()
