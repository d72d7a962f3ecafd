"""PSNR and SSIM between the pictures of two folders, paired by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowmatch_jax.data.images.decode import decode, square
from flowmatch_jax.data.images.folder import list_pictures
from flowmatch_jax.data.images.image_set import Shape, picture_shapes, unreadable
from flowmatch_jax.metrics.similarity import RADIUS, mean_and_error, psnr, ssim
from flowmatch_jax.runtime.errors import UserError, renamed
from flowmatch_jax.runtime.progress import progress_bar


class Pair(NamedTuple):
    """Two pictures of one size.

    Attributes:
        a, b: their files.
        shape: shape [H, W, C] that they are compared in, with C = 1 if both are grey, otherwise 3.
    """

    a: Path
    b: Path
    shape: tuple[int, int, int]


def open_pairs(a: Path, b: Path) -> tuple[list[Pair], list[str]]:
    """Pair the pictures below two folders by their paths without suffix. Only headers are read.

    Returns:
        The pairs, and sentences about pictures that have no partner.

    Raises:
        UserError: a folder has no pictures or two of one name, there is no pair, a picture cannot
            be read, or the pictures of a pair have different sizes.
    """
    found = {}
    for name, folder in (("A", a), ("B", b)):
        with renamed(name):
            found[name] = _by_name(folder)
    names = sorted(found["A"].keys() & found["B"].keys())
    if not names:
        first, other = (next(iter(files.values())) for files in found.values())
        allowed = f"none of its pictures, such as {other}, has a name of A, such as {first}"
        raise UserError("B", str(b), allowed)
    shapes = {}
    for name, folder in (("A", a), ("B", b)):
        with renamed(name):
            shapes[name] = picture_shapes(folder, [found[name][key] for key in names])
    pairs = [
        _pair(a / found["A"][key], b / found["B"][key], x, y)
        for key, x, y in zip(names, shapes["A"], shapes["B"], strict=True)
    ]
    return pairs, [note for name in found for note in _alone(name, found[name], names)]


def _pair(a: Path, b: Path, x: Shape, y: Shape) -> Pair:
    if x[:2] != y[:2]:
        allowed = f"its partner {a} has {x[:2]}; the pictures of a pair have one size"
        raise UserError("B", f"{b} of {y[:2]} pixels", allowed)
    return Pair(a, b, (*x[:2], max(x[2], y[2])))


def _by_name(folder: Path) -> dict[str, str]:
    """Map the names of a folder's pictures without suffix to their names."""
    found: dict[str, str] = {}
    for name in list_pictures(folder):
        key = str(Path(name).with_suffix(""))
        if key in found:
            got = f"{folder / found[key]} and {folder / name}"
            raise UserError("path", got, "both have one name besides the suffix; rename one")
        found[key] = name
    return found


def _alone(name: str, found: dict[str, str], names: list[str]) -> list[str]:
    """Return a sentence about the pictures without a partner, if there are some."""
    alone = sorted(found.keys() - set(names))
    if not alone:
        return []
    listed = ", ".join(found[key] for key in alone[:3]) + ", ..." * (len(alone) > 3)
    return [f"{len(alone)} of {len(found)} pictures in {name} have no partner: {listed}"]


def pair_scores(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Compute the means of PSNR and SSIM over the pairs, with standard errors.

    Returns:
        {"psnr", "ssim", and both with "_standard_error"}. PSNR is None if the pictures of a pair
        are equal, SSIM if a picture is smaller than its window.

    Raises:
        UserError: a picture cannot be read.
    """
    has_ssim = all(min(pair.shape[:2]) > 2 * RADIUS for pair in pairs)
    scores = []
    with progress_bar(pairs, desc="pairs") as bar:
        for pair in bar:
            x, y = (_read(path, pair.shape[2])[None] for path in (pair.a, pair.b))
            scores.append([psnr(x, y)[0], ssim(x, y)[0] if has_ssim else np.nan])
    of_psnr, of_ssim = np.array(scores).T
    return mean_and_error("psnr", of_psnr) | mean_and_error("ssim", of_ssim)


def _read(path: Path, channels: int) -> np.ndarray:
    """Read a picture, uint8 [H, W, C]."""
    try:
        return square(decode(path.read_bytes(), channels, upright=True), None)
    except Exception as error:  # decoders raise errors of any type for damaged data
        raise unreadable(path, error) from error
