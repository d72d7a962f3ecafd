"""Upsampling of the user's own images with a trained super-resolution model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.images.decode import decode, encode, square
from flowmatch_jax.data.images.folder import list_pictures
from flowmatch_jax.evaluation.pictures import to_uint8
from flowmatch_jax.evaluation.samples import sample_key
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.pixels import from_bytes
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.sampling.tiling import fitting, tiled
from flowmatch_jax.solvers import Solution

logger = logging.getLogger(__name__)

# (params, image uint8 [h, w, C]) -> the upsampled image, uint8
Upsampler = Callable[[Params, np.ndarray], np.ndarray]


def upsample_pictures(experiment: Experiment, params: Params, source: Path, output: Path) -> None:
    """Upsample each image and write it as PNG to the output folder under the same name.

    Images are decoded by `data.images`, upright, with the model's channels. Each size of canvas is
    compiled once.

    Args:
        experiment: the experiment.
        params: the parameters.
        source: an image, or a folder that is searched recursively.
        output: folder for the upsampled images.

    Raises:
        UserError: the model is not a super-resolution model, there are no images, or the output
            cannot be written.
        RunStopped: some images could not be read; each was reported, and the others are written.
    """
    check_super_resolution(experiment)
    upsampler, folder = make_upsampler(experiment), experiment.config.data.folder
    channels, unreadable = experiment.train_data.shape[-1], 0
    targets = plan(source, output)
    for path, target in targets.items():
        try:
            image = decode(path.read_bytes(), channels, folder.background, upright=True)
        except Exception as error:  # Pillow's decoders raise errors of many types
            logger.error("%s cannot be read: %s", path, " ".join(str(error).split()))
            unreadable += 1
            continue
        enlarged = upsampler(params, square(image, None))
        if jax.process_index() == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, encode(enlarged))
        logger.info("%s: %d x %d pixels", target, *enlarged.shape[1::-1])
    if unreadable:
        raise RunStopped(f"{unreadable} of {len(targets)} pictures could not be read")


def plan(source: Path, output: Path) -> dict[Path, Path]:
    """Map each input image to its output file.

    Raises:
        UserError: there are no images, two would have the same output file, or the output folder
            cannot be created or lies in the input folder.
    """
    if source.is_dir():
        try:
            names = list_pictures(source)
        except UserError as error:
            raise UserError("--input", error.got, error.allowed) from error
        if output.resolve().is_relative_to(source.resolve()):
            raise UserError("--output", str(output), "it lies in --input; give another folder")
        pictures = {source / name: output / Path(name).with_suffix(".png") for name in names}
    elif source.is_file():
        pictures = {source: output / f"{source.stem}.png"}
    else:
        raise UserError("--input", str(source), "there is no such picture or folder")
    first: dict[Path, Path] = {}
    for path, target in pictures.items():
        if target in first:
            got = f"{first[target]} and {path}"
            raise UserError("--input", got, f"both would become {target}; rename one")
        if target.resolve() == path.resolve():
            raise UserError("--output", str(output), f"it would overwrite {path}; give another")
        first[target] = path
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"it cannot be made a folder ({error.strerror}); give another"
        raise UserError("--output", str(output), allowed) from error
    return pictures


def make_upsampler(experiment: Experiment) -> Upsampler:
    """Create (params, image uint8 [h, w, C]) -> uint8 [f h, f w, C], f = size / low resolution.

    The image is padded by reflection to a canvas that tiles of the training size cover; the network
    is applied to config.evaluate.samples tiles at a time. All images start from the same noise.
    """
    config, conditioning, mesh = experiment.config, experiment.conditioning, experiment.mesh
    side, levels = experiment.train_data.shape[0], experiment.train_data.levels
    low = conditioning.low_resolution
    factor, overlap = side // low, int(config.upsample.overlap * low)

    def apply(params: Params, t: Array, x: Array, **inputs: Array) -> Array:
        x, inputs = jax.tree.map(lambda tiles: split_if_even(tiles, mesh), (x, inputs))
        return experiment.apply(params, t, x, **inputs)

    canvas = replace(
        experiment, apply=tiled(apply, side, factor * overlap, config.evaluate.samples)
    )

    @jax.jit
    def generate(params: Params, picture: Array) -> Solution:
        sides = tuple(factor * length for length in picture.shape[:2])
        source_key, noise_key = jax.random.split(sample_key(config.evaluate.seed))
        shape = (1, *sides, picture.shape[-1])
        x0 = draw_source(source_key, shape, experiment.path.source_std)
        inputs = {"condition": conditioning.condition(picture[None], sides)}
        return canvas.generate(gather(params, mesh), x0, noise_key, inputs)

    def upsample(params: Params, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        padding = [(0, fitting(n, low, overlap) - n) for n in (height, width)]
        padded = np.pad(from_bytes(picture, levels), (*padding, (0, 0)), "reflect")
        solution = generate(params, padded)
        if not solution.converged:
            logger.warning("The solver gave up: the field is not finite")
        x = to_host(solution.x)[0, : factor * height, : factor * width]
        return to_uint8(x, levels)

    return upsample


def check_super_resolution(experiment: Experiment) -> None:
    if experiment.conditioning.low_resolution is None:
        allowed = "the model is of no super-resolution: --mode=upsample takes one that has it set"
        raise UserError("config.condition.low_resolution", None, allowed)
    if experiment.guidance:
        allowed = "pictures come without a label: leave it 1"
        raise UserError("config.guidance.scale", experiment.guidance.scale, allowed)
