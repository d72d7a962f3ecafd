"""Class accuracy of class-conditional samples of digits.

The classifier is a support vector machine on pixels, trained on the training split. The benchmark
trains configs/digits_class.py first, unless the workdir has a finished run.

python -m benchmarks.class_accuracy --workdir=runs/digits_class
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict
from sklearn.svm import SVC

from benchmarks.timing import write
from flowmatch_jax.arrays import Params
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.metrics.features.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.modes import run
from flowmatch_jax.pixels import quantise
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.training.weights import load_weights

WHOLE = (0.0, 1.0)
GUIDANCES = [Guidance(scale) for scale in (1.0, 1.5, 2.0, 3.0, 5.0)]
GUIDANCES += [Guidance(3.0, (0.0, 0.5)), Guidance(3.0, (0.5, 1.0))]


def classifier(experiment: Experiment) -> SVC:
    """Fit a classifier for integer images [N, 64] on the training split."""
    source = experiment.train_data
    return SVC(gamma=0.001, C=10).fit(source.x.reshape(len(source), -1), source.label)


def measure(
    experiment: Experiment, params: Params, judge: SVC, each: int, reference: Moments
) -> dict[str, Any]:
    """Draw ``each`` samples per class with the experiment's guidance, and score them."""
    size, classes = experiment.config.evaluate.samples, experiment.train_data.num_classes
    labels = np.resize(np.arange(classes, dtype=np.int32), each * classes).reshape(-1, size)
    sampler = make_sampler(experiment, size)
    solutions = [sampler(params, i, {"label": label}) for i, label in enumerate(labels)]
    x = np.concatenate([s.x for s in solutions])
    images = np.asarray(quantise(x, experiment.train_data.levels)).reshape(len(x), -1)
    right = judge.predict(images) == labels.ravel()
    moments = Moments.empty(images.shape[1]).add(pixels(images, experiment.train_data.levels))
    return {
        **asdict(experiment.guidance),
        "accuracy": float(right.mean()),
        "standard_error": float(right.std() / math.sqrt(len(right))),
        "of_the_worst_class": float(min(right[labels.ravel() == c].mean() for c in range(classes))),
        "fd_pixels": float(frechet_distance(moments, reference)),
        "nfe": float(np.mean([s.nfe for s in solutions])),
    }


def line(row: dict[str, Any]) -> str:
    """Format the result of `measure` as a row of a Markdown table."""
    name = "none" if row["scale"] == 1 else f"{row['scale']:g}"
    if tuple(row["interval"]) != WHOLE:
        name += f", t in {row['interval']}"
    share = f"{100 * row['accuracy']:.1f} +- {100 * row['standard_error']:.1f}%"
    return f"| {name} | {share} | {row['fd_pixels']:.3f} | {row['nfe']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_class"))
    parser.add_argument("--each", type=int, default=200, help="samples per class")
    flags = parser.parse_args()
    config = FrozenConfigDict(experiment_config("configs/digits_class.py"))
    if not (flags.workdir / "evaluation" / f"{config.train.steps}.json").exists():
        run("train", config, flags.workdir)
    experiment = build(config)
    ((step, weights),) = load_weights(experiment, flags.workdir, ("ema",)).items()
    judge, test = classifier(experiment), experiment.test_data
    reference = make_reference(experiment).moments
    print("| guidance | recognised | fd_pixels | NFE |\n|---|---|---|---|")
    rows = []
    for guidance in GUIDANCES:
        guided = replace(experiment, guidance=guidance)
        rows.append(measure(guided, weights["ema"], judge, flags.each, reference))
        print(line(rows[-1]), flush=True)
    write(
        "class_accuracy",
        {
            "steps": step,
            "samples_a_class": flags.each,
            "solver": config.solver.to_dict(),
            "classifier": "SVC(gamma=0.001, C=10) of pixels",
            "classifier_on_held_out_digits": judge.score(test.x.reshape(len(test), -1), test.label),
            "samples": rows,
        },
    )


if __name__ == "__main__":
    main()
