"""Decode image files into uint8 arrays with Pillow.

- Transparent pixels (RGBA, LA, palette or tRNS) are composited on a background.
- CMYK JPEGs are converted to RGB by Pillow, without colour profiles.
- 16-bit grey images keep the high byte of each value, as Pillow does for 16-bit RGB.
- Animations (WebP, APNG) are reduced to their first frame.
- Photographs with an EXIF orientation are rotated upright on request.

The format is detected from a file's content, not from its suffix.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from flowmatch_jax.runtime.errors import UserError, at_least

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST = 2**26  # pixels of an image: 8192 x 8192, for which decoding takes up to 1.7 GB
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name
GREY = ("1", "L", "LA", "I", "I;16", "I;16B")  # Pillow's names of grey images

# Pillow's warning beyond its own limit, which is higher than LARGEST, does not name the file. The
# filter is global because `warnings.catch_warnings` is not thread-safe, and threads decode images.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def validate(size: int | None, channels: int, background: str) -> None:
    """Raise UserError unless these decoding options are valid."""
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
    """Decode an image file to 8-bit grey (channels 1) or RGB (3).

    Args:
        data: content of the file.
        channels: 1 or 3.
        background: colour behind transparent pixels.
        upright: rotate by the EXIF orientation.

    Raises:
        ValueError: the format is not one of FORMATS, or there are more than LARGEST pixels.
        Exception: the data is damaged; Pillow's decoders raise errors of many types.
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
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips
        values = np.asarray(image)
        alpha = np.where(values == image.info.get("transparency", -1), 0, 255)
        image = Image.fromarray(np.dstack([values >> 8, alpha]).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(MODES[channels])


def read_shape(path: Path) -> tuple[int, int, int]:
    """Read the shape [H, W, C] of an image file from its header: C = 1 if it is grey, otherwise 3.

    Height and width are those of the upright image.

    Raises:
        Exception: the file is no image; Pillow's readers raise errors of many types.
    """
    with Image.open(path, formats=FORMATS) as image:
        # A PNG without EXIF data in its header would be decoded to look for them behind its pixels.
        turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = reversed(image.size) if turned else image.size
        return height, width, 1 if image.mode in GREY else 3


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """Crop the largest centre square and resize it: uint8 [size, size, C].

    It is downscaled by `average_areas` and upscaled by bicubic interpolation. Without a size the
    image keeps its shape, [H, W, C].
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
    """Downscale uint8 [S, S, C] to [size, size, C]: a new pixel is the mean of its area.

    Old pixels that are covered in part are weighted by the covered fraction. (Pillow's box filter
    weights them fully, which is equal where size divides S.)
    """
    side = len(array)
    edges, old = np.arange(size + 1) * (side / size), np.arange(side)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights = (np.maximum(covered, 0) * (size / side)).astype(np.float32)
    means = np.einsum("ih,jw,hwc->ijc", weights, weights, array.astype(np.float32), optimize=True)
    return np.rint(means).astype(np.uint8)


def encode(array: np.ndarray) -> bytes:
    """Encode uint8 [H, W, C] as PNG, C in {1, 3}."""
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()
