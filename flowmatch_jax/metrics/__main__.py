"""Score images that any program made.

    python -m flowmatch_jax.metrics samples data --extractor=efficientnet_lite0
    python -m flowmatch_jax.metrics data --save=data.npz
    python -m flowmatch_jax.metrics samples data.npz
    python -m flowmatch_jax.metrics upsampled originals --pairs

A set is a folder of pictures, an .npy or .npz file with a uint8 array [N, H, W, C], or an npz file
of statistics (mu and sigma), from --save or from another project.
Exit codes: 0 success; 2 user error, reported in one line; 1 any other error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmatch_jax.metrics.compare import choose_scores, measure, open_sets
from flowmatch_jax.metrics.features.extractors import EXTRACTORS
from flowmatch_jax.metrics.pairs import open_pairs, pair_scores
from flowmatch_jax.metrics.scores import SCORES, compute_scores, few_images, need_features
from flowmatch_jax.metrics.statistics import Statistics
from flowmatch_jax.metrics.table import TITLES, score_rows
from flowmatch_jax.runtime.errors import ArgumentParser, UserError, at_least, exit_code, renamed
from flowmatch_jax.runtime.files import full_disk_stops, write_atomically
from flowmatch_jax.runtime.mesh import check_jax
from flowmatch_jax.runtime.text import aligned
from flowmatch_jax.runtime.workdir import use_compilation_cache, write_json

OF_SETS = ("extractor", "weights_file", "scores", "size", "save")  # flags without a use for pairs
COUNTS = {r"images_in_(.)": "images in {}", r"pairs": "pairs"}

Results = dict[str, Any]  # values by name


def main(arguments: Sequence[str]) -> int:
    """Score the sets that the command line names; returns the exit code."""
    use_compilation_cache()
    return exit_code(lambda: _score(parse(arguments)))


def _score(given: argparse.Namespace) -> None:
    check_jax()
    results, notes = score_pairs(given) if given.pairs else score_sets(given)
    print(aligned(score_rows({"": results}, TITLES | COUNTS), right=[1]))
    for note in notes:
        print(f"{note[0].upper()}{note[1:]}.")
    if given.output:
        with full_disk_stops(given.output.parent):
            write_json(given.output, results)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line, before any set is read."""
    parser = ArgumentParser(
        prog="python -m flowmatch_jax.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", type=_path, help="set to score: samples")
    parser.add_argument(
        "b", metavar="B", type=_path, nargs="?", help="set to compare with: data; none with --save"
    )
    parser.add_argument("--extractor", help=f"{', '.join(EXTRACTORS)}; default: efficientnet_lite0")
    parser.add_argument("--weights_file", help="pytorch-fid's .pth file, for inception")
    parser.add_argument(
        "--scores",
        help=f"scores besides the Fréchet distance, of: {', '.join(SCORES)}; default: all for "
        "which there are images",
    )
    parser.add_argument(
        "--size", type=int, help="crop pictures of folders to squares and resize them to this side"
    )
    parser.add_argument("--save", type=_path, help="npz file for the statistics of A")
    parser.add_argument("--output", type=_path, help="JSON file for the scores")
    parser.add_argument(
        "--pairs", action="store_true", help="PSNR and SSIM of pictures with equal names"
    )
    given = parser.parse_args(arguments)
    for name in OF_SETS if given.pairs else ():
        if getattr(given, name) is not None:
            raise UserError(f"--{name}", str(getattr(given, name)), "--pairs has no use for it")
    if given.b is None and (given.pairs or given.save is None):
        raise UserError("B", None, "give the set to compare A with; --save alone needs none")
    if given.b is None and given.output is not None:
        raise UserError("--output", str(given.output), "without B there are no scores")
    if given.size is not None:
        at_least("--size", given.size, 1)
    for name, suffix in (("save", ".npz"), ("output", ".json")):
        if (path := getattr(given, name)) is not None:
            _check_new(f"--{name}", path, suffix)
    return given


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _check_new(flag: str, path: Path, suffix: str) -> None:
    """Raise UserError unless a file can be written and does not exist."""
    if path.suffix != suffix:
        raise UserError(flag, str(path), f"give a name that ends in {suffix}")
    if path.exists():
        raise UserError(flag, str(path), "it exists; give another name or remove it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(flag, str(path), f"it cannot be written: {error.strerror}") from error


def score_sets(given: argparse.Namespace) -> tuple[Results, list[str]]:
    """Score A against B, if it is given, and save the statistics of A; returns scores and notes."""
    paths = {"A": given.a} | ({"B": given.b} if given.b else {})
    extractor = given.extractor or "efficientnet_lite0"
    asked = None if given.scores is None else [name for name in given.scores.split(",") if name]
    sets, net = open_sets(paths, extractor, given.weights_file, given.size)
    if given.save and isinstance(sets["A"], Statistics):
        raise UserError("--save", str(given.save), f"{given.a} is a file of statistics already")
    scores = choose_scores(sets, net, asked) if given.b else []
    results: Results = {}
    features, notes = {}, []
    for name, images in sets.items():
        of_classes = name == "A" and "inception_score" in scores
        with renamed(name):
            features[name] = measure(images, net, need_features(scores), of_classes)
        moments = features[name].moments
        results[f"images_in_{name}"] = moments.count
        notes += few_images(moments.count, len(moments.mean), f"images in {name}")
    if given.save:
        statistics = Statistics(features["A"].moments, extractor, sets["A"].shape[1:])
        with full_disk_stops(given.save.parent):
            write_atomically(given.save, statistics.to_bytes())
        notes.append(f"the statistics of A are in {given.save}")
    if given.b:
        results |= compute_scores(features["A"], features["B"], extractor, scores)
    return results, notes


def score_pairs(given: argparse.Namespace) -> tuple[Results, list[str]]:
    """Score the pairs of pictures in the folders A and B; returns the scores and notes."""
    pairs, notes = open_pairs(given.a, given.b)
    results = pair_scores(pairs)
    if results["psnr"] is None:
        notes.append("the pictures of a pair are equal, so that the mean of PSNR is infinite")
    if results["ssim"] is None:
        notes.append("a picture is smaller than 11 pixels, the window of SSIM")
    return results | {"pairs": len(pairs)}, notes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
