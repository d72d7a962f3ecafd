"""The modes of the command line, as functions of a config and a workdir."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import FrozenConfigDict

from flowmatch_jax.arrays import Params
from flowmatch_jax.autoguidance import with_weak_model
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.config.experiments import find
from flowmatch_jax.config.identity import check_identity
from flowmatch_jax.evaluation.evaluate import evaluate, is_evaluated, numbers
from flowmatch_jax.evaluation.generate import generate_samples
from flowmatch_jax.evaluation.quality import number_judged
from flowmatch_jax.evaluation.samples import (
    Sampler,
    draw,
    make_sampler,
    number_generated,
    picture_file,
)
from flowmatch_jax.evaluation.upsample import upsample_pictures
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.fit_solver import fit_solver
from flowmatch_jax.generate_pairs import generate_pairs
from flowmatch_jax.report.figures import are_drawn, draw_figures
from flowmatch_jax.report.report import write_report
from flowmatch_jax.runtime import processes
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import check_run, open_workdir, recorded_data
from flowmatch_jax.tracking.log import RunLog
from flowmatch_jax.training.cost.profile import profile_steps, table
from flowmatch_jax.training.loop import train
from flowmatch_jax.training.setup import check_training
from flowmatch_jax.training.weights import load_weights

logger = logging.getLogger(__name__)

# Default methods of a comparison, in the order of the paper's tables.
METHODS = ("ot", "vp", "ddpm", "score", "scoreflow")
SUPER_RESOLUTION_METHODS = ("regression", "sr3", "ot")


def open_run(
    config: FrozenConfigDict, workdir: Path, trains: bool = True, samples: bool = True
) -> Experiment:
    """Build the experiment of a workdir, the same one in all processes.

    Args:
        config: the configuration.
        workdir: folder of the run, which is created for training only.
        trains: whether the run will be trained. If not, its datasets are opened when their items
            are needed.
        samples: whether samples are drawn by the config's solver. If not, and it is a fitted one,
            its file need not exist.
    """
    processes.same_everywhere("--workdir", str(workdir))
    processes.same_everywhere("--config", config.to_json())
    check_identity(workdir, config)
    if not trains:
        check_run(workdir)
        recorded = recorded_data(workdir)
        return with_weak_model(build(config, recorded, workdir if samples else None))
    experiment = _build_for_training(config, workdir)
    open_workdir(workdir)
    return experiment


def _build_for_training(config: FrozenConfigDict, workdir: Path) -> Experiment:
    """Build the experiment; tells what the training or its evaluation refuses, before any work."""
    experiment = build(config, workdir=workdir)
    check_training(experiment)
    if experiment.extractor:
        number_judged(experiment, number_generated(experiment))
    return experiment


def run(mode: str, config: FrozenConfigDict, workdir: Path, step: int | None = None) -> None:
    """Train, evaluate or sample one run, or draw its figures.

    Args:
        mode: "train", "evaluate", "sample" or "figures".
        config: the configuration.
        workdir: folder of the run.
        step: step of the checkpoint to evaluate or sample; None: the newest.
    """
    run_opened(mode, open_run(config, workdir, trains=mode == "train"), workdir, step)


def run_opened(mode: str, experiment: Experiment, workdir: Path, step: int | None = None) -> None:
    """Do what `run` does, for an experiment that `open_run` has built."""
    if mode == "figures":
        draw_run(experiment, workdir)
        return
    sampler = make_sampler(experiment, experiment.config.evaluate.samples)
    if mode == "sample":
        kinds = experiment.config.evaluate.weights
        ((step, weights),) = load_weights(experiment, workdir, kinds, step=step).items()
        for kind, params in weights.items():
            draw(experiment, sampler, workdir, kind, params, step, keep_arrays=True)
        return
    with RunLog(workdir, experiment.config) as log:
        if mode == "evaluate" or train_run(experiment, sampler, workdir, log):
            evaluate_run(experiment, sampler, workdir, log, step)


def train_run(experiment: Experiment, sampler: Sampler, workdir: Path, log: RunLog) -> bool:
    """Train a run; returns whether its evaluation is wanted and has not been made."""

    def draw_samples(params: Params, step: int) -> None:
        draw(experiment, sampler, workdir, "ema", params, step)
        log.picture(step, "samples/ema", picture_file(workdir, step, "ema"))

    trained = train(experiment, workdir, draw_samples, log)
    if not experiment.config.evaluate.after_training:
        logger.info("%s is trained. --mode=evaluate evaluates it.", workdir)
        return False
    if not trained and processes.everywhere(is_evaluated(experiment, workdir)):
        logger.info("%s is trained and evaluated already.", workdir)
        return False
    return True


def evaluate_run(
    experiment: Experiment, sampler: Sampler, workdir: Path, log: RunLog, step: int | None
) -> None:
    """Evaluate a checkpoint of a run, and log its scores and samples."""
    kinds = experiment.config.evaluate.weights
    ((step, weights),) = load_weights(experiment, workdir, kinds, step=step).items()
    record = evaluate(experiment, sampler, weights, step, workdir)
    log.write(step, numbers(record))
    for kind in weights:
        log.picture(step, f"samples/{kind}", picture_file(workdir, step, kind))


def fit_run_solver(config: FrozenConfigDict, workdir: Path, step: int | None = None) -> None:
    """Fit a solver to a run, with the first kind in config.evaluate.weights."""
    experiment = open_run(config, workdir, trains=False, samples=False)
    kind = config.evaluate.weights[0]
    ((step, weights),) = load_weights(experiment, workdir, (kind,), step=step).items()
    fit_solver(experiment, weights[kind], workdir, {"step": step, "weights": kind})


def generate_run_pairs(config: FrozenConfigDict, workdir: Path, step: int | None = None) -> None:
    """Write pairs of noise and samples to the folder pairs of a run, for reflow.

    They are by the first kind in config.evaluate.weights.
    """
    experiment = open_run(config, workdir, trains=False)
    kind = config.evaluate.weights[0]
    ((step, weights),) = load_weights(experiment, workdir, (kind,), step=step).items()
    folder = workdir / "pairs"
    generate_pairs(experiment, weights[kind], folder, {"step": step, "weights": kind})


def draw_run(experiment: Experiment, workdir: Path) -> None:
    """Draw the figures of a run with the first kind in config.evaluate.weights."""
    kind = experiment.config.evaluate.weights[0]
    kept = load_weights(experiment, workdir, (kind,), every_step=True)
    by_step = {step: weights[kind] for step, weights in kept.items()}
    step = max(by_step)
    draw_figures(experiment, by_step[step], step, by_step.items(), workdir)


def profile(config: FrozenConfigDict, workdir: Path) -> None:
    """Trace a few training steps, and print their slowest operations."""
    operations = profile_steps(open_run(config, workdir), workdir / "profile")
    if jax.process_index() == 0:
        print(table(operations))
        logger.info("The trace is in %s; XProf and Perfetto open it.", workdir / "profile")


def upsample(
    config: FrozenConfigDict, workdir: Path, pictures: Path, output: Path, step: int | None = None
) -> None:
    """Upsample the user's images with the first kind in config.evaluate.weights."""
    experiment = open_run(config, workdir, trains=False)
    kind = config.evaluate.weights[0]
    ((_, weights),) = load_weights(experiment, workdir, (kind,), step=step).items()
    upsample_pictures(experiment, weights[kind], pictures, output)


def generate(
    config: FrozenConfigDict,
    workdir: Path,
    seeds: Sequence[int],
    classes: Sequence[str],
    output: Path,
    step: int | None = None,
) -> None:
    """Write samples, with the first kind in config.evaluate.weights, as `generate_samples` does."""
    experiment = open_run(config, workdir, trains=False)
    kind = config.evaluate.weights[0]
    ((step, weights),) = load_weights(experiment, workdir, (kind,), step=step).items()
    made_by = {"step": step, "weights": kind}
    generate_samples(experiment, weights[kind], seeds, classes, output, made_by)


def compared(data: str, methods: Sequence[str] | None) -> dict[str, str]:
    """Map the methods that are compared on a dataset to their config files.

    A file configs/<data>.py is super-resolution by flow matching with the OT path.
    """
    own = Path(f"configs/{data}.py")
    is_super_resolution = find(own) is not None
    names = methods or (SUPER_RESOLUTION_METHODS if is_super_resolution else METHODS)
    files = {name: f"configs/{data}_{name}.py" for name in names}
    return files | ({"ot": str(own)} if is_super_resolution and "ot" in names else {})


def compare(
    data: Sequence[str],
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    overrides: list[str],
    folder: Path,
) -> None:
    """Train, evaluate and draw each method on each dataset, and write a report per dataset.

    Runs are in folder/<data>_<method>_seed<seed>, reports in folder/report_<data>. Completed parts
    are skipped. Figures are drawn for the first seed only.
    """
    runs = {
        name: {
            folder / f"{name}_{method}_seed{seed}": load_config(
                file, [*overrides, f"--config.seed={seed}"]
            )
            for method, file in compared(name, methods).items()
            for seed in seeds
        }
        for name in data
    }
    for configs in runs.values():
        for workdir, config in configs.items():  # reports errors before any training
            check(workdir, config)
    for name, configs in runs.items():
        drawn = {workdir for workdir, config in configs.items() if config.seed == seeds[0]}
        complete_all(configs, drawn, folder / f"report_{name}")


def check(workdir: Path, config: FrozenConfigDict) -> Experiment:
    """Build the experiment of a run; raises UserError unless it can be trained and reported."""
    if not config.evaluate.after_training:
        allowed = "the report needs the evaluations: leave it True"
        raise UserError("config.evaluate.after_training", False, allowed)
    check_identity(workdir, config)
    return _build_for_training(config, workdir)


def complete_all(
    configs: Mapping[Path, FrozenConfigDict],
    drawn: Collection[Path],
    report: Path,
    rows: Mapping[Path, str] | None = None,
) -> None:
    """Complete runs one after another, and write a report of them.

    Args:
        configs: config of each run by its folder.
        drawn: folders of the runs whose figures are drawn.
        report: folder of the report.
        rows: names of the runs' rows in the report, by folder; None: by method.
    """
    for workdir, config in configs.items():
        complete(config, workdir, with_figures=workdir in drawn)
        jax.clear_caches()  # the next run may not use these programs
    if jax.process_index() == 0:
        write_report(list(configs), report, rows)


def complete(config: FrozenConfigDict, workdir: Path, with_figures: bool) -> None:
    """Train and evaluate a run, and draw its figures, unless that is already done."""
    experiment = open_run(config, workdir)
    if processes.everywhere(is_evaluated(experiment, workdir)):
        logger.info("%s is done already.", workdir)
    else:
        logger.info("Training %s.", workdir)
        run_opened("train", experiment, workdir)
    if with_figures and not processes.everywhere(are_drawn(experiment, workdir)):
        run_opened("figures", experiment, workdir)
