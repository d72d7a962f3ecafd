"""Flow matching from the command line.

    python main.py --config=configs/digits_ot.py
    python main.py --mode=report --runs=runs/a,runs/b
    python main.py --mode=compare --data=digits --seeds=0,1,2
    python main.py --config=configs/digits_ot.py --profile=steps

Exit codes: 0 done; 2 a mistake in the flags or the config, told in one line; 1 anything else, also
when a signal or a full disk ends it, told in one line too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import FrozenConfigDict

from flowmatch_jax.arrays import Params
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.evaluation.evaluate import evaluate, is_evaluated
from flowmatch_jax.evaluation.samples import draw, make_sampler
from flowmatch_jax.evaluation.upsample import upsample_pictures
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.report.figures import are_drawn, draw_figures
from flowmatch_jax.report.report import write_report
from flowmatch_jax.runtime import processes, stops
from flowmatch_jax.runtime.errors import RunStopped, UserError, one_of, tell
from flowmatch_jax.runtime.files import full_disk_stops
from flowmatch_jax.runtime.mesh import with_shardings
from flowmatch_jax.runtime.workdir import has_checkpoint, open_workdir, user_cache
from flowmatch_jax.training.checkpoints import Checkpoints, DamagedCheckpoint
from flowmatch_jax.training.cost.profile import profile_steps, table
from flowmatch_jax.training.loop import train

logger = logging.getLogger("flowmatch_jax")

# mode -> the flags that it takes besides --workdir
MODES = {
    "train": ("config", "profile"),
    "evaluate": ("config",),
    "sample": ("config",),
    "figures": ("config",),
    "upsample": ("config", "input", "output"),
    "report": ("runs",),
    "compare": ("data", "methods", "seeds"),
}

PROFILES = ("steps",)

# What is compared where --methods does not say, in the order of the paper's tables.
METHODS = ("ot", "vp", "ddpm", "score", "scoreflow")
SUPER_RESOLUTION_METHODS = ("regression", "sr3", "ot")

_CONFIG = flags.DEFINE_string(
    "config", None, "A file of configs/; override a field with --config.section.field=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of what is written. Default: runs/<the config's name, or the mode>."
)
_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "train: train to the last step, going on where the workdir left off, then evaluate; "
    "evaluate: score the newest checkpoint; sample: draw a picture of samples from it; "
    "figures: draw the paper's figures of the run; upsample: enlarge your own pictures, --input, "
    "by a super-resolution model; report: tables and figures of several --runs; "
    "compare: train, evaluate, draw and report all --methods on each of --data.",
)
_INPUT = flags.DEFINE_string("input", None, "A picture to upsample, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the upsampled pictures.")
_RUNS = flags.DEFINE_list("runs", [], "Folders of the runs to report.")
_DATA = flags.DEFINE_list("data", ["checkerboard", "digits"], "Data sets to compare methods on.")
_METHODS = flags.DEFINE_list(
    "methods",
    None,
    f"Of configs/<data>_<method>.py. Default: {','.join(METHODS)}; of super-resolution "
    f"{','.join(SUPER_RESOLUTION_METHODS)}.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds that each method of a comparison is run with.")
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "steps: instead of training, trace a few steps into <workdir>/profile and print their ten "
    "costliest operations.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, for a run of several processes, with the two flags below. On TPU "
    "pods, under SLURM and Open MPI they find each other.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is, from 0.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse argv (the program's name first); a mistake in it ends the program with code 2.

    Returns:
        The overrides of the config's fields, --config.field=value.
    """
    overrides, others = split_overrides(argv[1:])
    try:
        remaining = flags.FLAGS([argv[0], *others])
        if len(remaining) > 1:
            raise UserError("argument", remaining[1], "flags are written --name=value")
        one_of("--mode", _MODE.value, MODES)
        if _PROFILE.present:
            one_of("--profile", _PROFILE.value, PROFILES)
        taken = MODES[_MODE.value]
        for name in {name for names in MODES.values() for name in names}.difference(taken):
            if flags.FLAGS[name].present:
                raise UserError(
                    f"--{name}", flags.FLAGS[name].value, f"{_MODE.value} has no use for it"
                )
        if overrides and _MODE.value == "report":
            raise UserError("argument", overrides[0], "a report takes runs as they were made")
        if "config" in taken and _CONFIG.value is None:
            raise UserError("--config", None, "give a file, such as configs/digits_ot.py")
        for name in ("input", "output"):
            if name in taken and flags.FLAGS[name].value is None:
                raise UserError(f"--{name}", None, flags.FLAGS[name].help)
        return overrides
    except (UserError, flags.Error) as error:
        stop(error)


def stop(error: Exception) -> NoReturn:
    """Tell in one line why the run ends; exit with code 2 at a mistake of the user's, else 1."""
    tell(error)
    processes.leave(1 if isinstance(error, RunStopped) else 2)


def check_jax() -> None:
    """Raise UserError where JAX is set in a way in which nothing here works."""
    if jax.config.jax_disable_jit:
        allowed = "training steps and solves are compiled; unset it"
        raise UserError("JAX_DISABLE_JIT", True, allowed)
    try:
        jax.devices()
    except RuntimeError as error:
        allowed = f"JAX finds no such devices ({str(error).splitlines()[0]}); unset it, or give cpu"
        raise UserError("JAX_PLATFORMS", jax.config.jax_platforms, allowed) from error


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told of another one."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "jax"))


def load_weights(
    experiment: Experiment, workdir: Path, kinds: Sequence[str], every_step: bool = False
) -> dict[int, dict[str, Params]]:
    """Weights of the workdir's newest checkpoint, or of all: step -> kind -> parameters.

    Checkpoints that are damaged are left out.
    """
    if not has_checkpoint(workdir):
        raise UserError("--workdir", str(workdir), "no checkpoint there yet; train first")
    shapes = jax.eval_shape(experiment.init_params, jax.random.key(0))
    layout = with_shardings(shapes, experiment.mesh)
    found: dict[int, dict[str, Params]] = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            try:
                found[step] = {k: checkpoints.restore_weights(step, k, layout) for k in kinds}
            except DamagedCheckpoint as damage:
                logger.warning("Checkpoint %d cannot be used: %s", step, damage)
            if found and not every_step:
                return found
    if not found:
        raise UserError("--workdir", str(workdir), "none of its checkpoints is whole")
    return dict(sorted(found.items()))


def open_run(config: FrozenConfigDict, workdir: Path) -> Experiment:
    """The experiment of a workdir, which is this config's; the same in all processes."""
    processes.same_everywhere("--workdir", str(workdir))
    processes.same_everywhere("--config", config.to_json())
    experiment = build(config)
    open_workdir(workdir, json.loads(config.to_json()))
    return experiment


def run(mode: str, config: FrozenConfigDict, workdir: Path) -> None:
    """Train, evaluate, sample or draw figures of one run."""
    experiment = open_run(config, workdir)
    kinds = config.evaluate.weights
    if mode == "figures":
        kept = load_weights(experiment, workdir, kinds[:1], every_step=True)
        by_step = {step: weights[kinds[0]] for step, weights in kept.items()}
        step = max(by_step)
        draw_figures(experiment, by_step[step], step, by_step.items(), workdir)
        return
    sampler = make_sampler(experiment, config.evaluate.samples)
    if mode == "train":
        train(experiment, workdir, partial(draw, experiment, sampler, workdir, "ema"))
    ((step, weights),) = load_weights(experiment, workdir, kinds).items()
    if mode == "sample":
        for kind, params in weights.items():
            draw(experiment, sampler, workdir, kind, params, step, keep_arrays=True)
    else:
        evaluate(experiment, sampler, weights, step, workdir)


def profile(config: FrozenConfigDict, workdir: Path) -> None:
    """Trace a few training steps; print where their time goes."""
    operations = profile_steps(open_run(config, workdir), workdir / "profile")
    if jax.process_index() == 0:
        print(table(operations))
        logger.info("The trace is in %s; XProf and Perfetto open it", workdir / "profile")


def upsample(config: FrozenConfigDict, workdir: Path, pictures: Path, output: Path) -> None:
    """Enlarge a user's own pictures by the first of config.evaluate.weights."""
    experiment = open_run(config, workdir)
    kind = config.evaluate.weights[0]
    ((_, weights),) = load_weights(experiment, workdir, (kind,)).items()
    upsample_pictures(experiment, weights[kind], pictures, output)


def compared(data: str, methods: Sequence[str] | None) -> dict[str, str]:
    """Method -> config file, of the methods that are compared on a data set.

    A file configs/<data>.py is super-resolution's, by flow matching with the OT path.
    """
    own = Path(f"configs/{data}.py")
    names = methods or (SUPER_RESOLUTION_METHODS if own.exists() else METHODS)
    files = {name: f"configs/{data}_{name}.py" for name in names}
    return files | ({"ot": str(own)} if own.exists() and "ot" in names else {})


def compare(
    data: Sequence[str],
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    overrides: list[str],
    folder: Path,
) -> None:
    """Train, evaluate and draw each method on each data set, and report; what is done is skipped.

    Runs are in folder/<data>_<method>_seed<seed>, reports in folder/report_<data>. Figures are
    drawn of the first seed's runs.
    """
    configs = {
        (name, method, seed): load_config(file, [*overrides, f"--config.seed={seed}"])
        for name in data
        for method, file in compared(name, methods).items()
        for seed in seeds
    }
    for config in configs.values():  # a mistake shows before any training
        build(config)
    for name in data:
        workdirs = []
        for (of, method, seed), config in configs.items():
            if of != name:
                continue
            workdir = folder / f"{name}_{method}_seed{seed}"
            workdirs.append(workdir)
            if processes.everywhere(is_evaluated(build(config), workdir)):
                logger.info("Done before: %s", workdir)
            else:
                logger.info("Training %s", workdir)
                run("train", config, workdir)
            if seed == seeds[0] and not processes.everywhere(are_drawn(build(config), workdir)):
                run("figures", config, workdir)
            jax.clear_caches()  # one method's programs are of no use to the next
        if jax.process_index() == 0:
            write_report(workdirs, folder / f"report_{name}")


def main(overrides: list[str]) -> None:
    """Run the mode asked for, alone or as one of several processes."""
    # This package's own messages; of the libraries', only warnings.
    absl.logging.set_verbosity(absl.logging.WARNING)
    stops.interrupt_on_stops()
    try:
        processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        check_jax()
        use_compilation_cache()
        jax.config.update("jax_enable_x64", False)  # whatever JAX_ENABLE_X64 says: see WORKSPACE.md
        if jax.process_index() == 0:
            logger.setLevel(logging.INFO)
        run_mode(_MODE.value, overrides)
    except (UserError, RunStopped) as error:
        stop(error)
    except KeyboardInterrupt as interrupt:
        name = interrupt.args[0] if interrupt.args else "SIGINT"
        stop(RunStopped(f"{name}: the same command goes on from what is saved"))
    except Exception:
        processes.await_news()
        traceback.print_exc()
        processes.leave(1)


def run_mode(mode: str, overrides: list[str]) -> None:
    """What the flags ask for."""
    config_file = _CONFIG.value
    name = Path(config_file.partition(":")[0]).stem if config_file else mode
    workdir = Path(_WORKDIR.value or Path("runs") / name).expanduser()
    processes.same_everywhere("--mode", mode)
    with full_disk_stops(workdir):
        if mode == "report":
            write_report([Path(run).expanduser() for run in _RUNS.value], workdir)
        elif mode == "compare":
            seeds = [_seed(text) for text in _SEEDS.value]
            compare(_DATA.value, _METHODS.value, seeds, overrides, workdir)
        elif mode == "upsample":
            config = load_config(config_file, overrides)
            pictures, output = (Path(p.value).expanduser() for p in (_INPUT, _OUTPUT))
            upsample(config, workdir, pictures, output)
        elif _PROFILE.value:
            profile(load_config(config_file, overrides), workdir)
        else:
            run(mode, load_config(config_file, overrides), workdir)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise UserError("--seeds", text, "it takes whole numbers, such as 0,1,2")
    return int(text)


def open_standard_streams() -> None:
    """Open those that are closed, as by ``2>&-``: the next file would take their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    open_standard_streams()
    app.run(main, flags_parser=parse_flags)
