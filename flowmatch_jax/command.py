"""Train, evaluate and compare flow-matching models from the command line.

    python main.py --config=configs/digits_ot.py
    python main.py --mode=report --runs=runs/a,runs/b
    python main.py --mode=compare --data=digits --seeds=0,1,2
    python main.py --config=configs/digits_ot.py --profile=steps
    python main.py --config=configs/digits_ot.py --sweep=config.optimizer.learning_rate=1e-4,3e-4

Exit codes: 0 success; 2 an error in the flags or the config, reported in one line; 1 any other
error, including a signal or a full disk, which are reported in one line too.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags
from ml_collections import FrozenConfigDict

from flowmatch_jax import modes
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.config.fields import show
from flowmatch_jax.report.report import write_report
from flowmatch_jax.runtime import errors, messages, processes, stops
from flowmatch_jax.runtime.errors import RunStopped, UserError, one_of, tell
from flowmatch_jax.runtime.files import full_disk_stops
from flowmatch_jax.runtime.mesh import check_jax
from flowmatch_jax.runtime.workdir import check_run, use_compilation_cache
from flowmatch_jax.sweep import sweep

logger = logging.getLogger("flowmatch_jax")

# mode -> its flags besides --workdir
MODES = {
    "train": ("config", "profile", "sweep"),
    "evaluate": ("config", "step"),
    "sample": ("config", "step"),
    "figures": ("config",),
    "fit_solver": ("config", "step"),
    "generate": ("config", "n", "seeds", "classes", "output", "step"),
    "generate_pairs": ("config", "step"),
    "upsample": ("config", "input", "output", "step"),
    "config": ("config",),
    "report": ("runs",),
    "compare": ("data", "methods", "seeds"),
}

PROFILES = ("steps",)

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A file such as configs/digits_ot.py; override a field with --config.section.field=value. "
    "Default: the config that the run in --workdir was trained with.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Output folder. Default: runs/<name of the config, or the mode>."
)
_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "train: train to the last step, resuming from the workdir's checkpoint, then evaluate; "
    "evaluate: evaluate the newest checkpoint; sample: draw a grid of samples from it; "
    "fit_solver: fit a solver with config.fit_solver.calls calls to the run; "
    "generate: write --n samples to --output; "
    "generate_pairs: write pairs of noise and samples, for reflow, to the run's folder pairs; "
    "figures: draw the paper's figures for the run; upsample: enlarge your own images, --input, "
    "with a super-resolution model; report: tables and figures of several --runs; "
    "config: print every field of a config, and where it is set; "
    "compare: train, evaluate, draw and report all --methods on each of --data.",
)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint to use. Default: the newest.")
_INPUT = flags.DEFINE_string("input", None, "A picture to upsample, or a folder of them.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder of the upsampled or generated pictures; generated ones may also go to an .npz file.",
)
_N = flags.DEFINE_integer(
    "n", None, "Number of samples to generate (of each class): seeds 0 to n - 1."
)
_CLASSES = flags.DEFINE_list(
    "classes",
    [],
    "Classes to generate, by number or name. Default: drawn as frequently as in training.",
)
_RUNS = flags.DEFINE_list("runs", [], "Folders of the runs to report.")
_DATA = flags.DEFINE_list("data", ["checkerboard", "digits"], "Datasets to compare methods on.")
_METHODS = flags.DEFINE_list(
    "methods",
    None,
    "Methods to compare, as in configs/<data>_<method>.py. Default: "
    f"{','.join(modes.METHODS)}; for super-resolution {','.join(modes.SUPER_RESOLUTION_METHODS)}.",
)
_SEEDS = flags.DEFINE_list(
    "seeds",
    None,
    "Seeds of each method in a comparison (default 0), or of the samples to generate: numbers and "
    "ranges, such as 0-63,100.",
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "steps: instead of training, trace a few steps into <workdir>/profile and print their ten "
    "slowest operations.",
)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    None,
    "config.section.field=value,value: train, evaluate and report a run for each value; if it is "
    "given for several fields, for each combination of their values.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0 in a run of several processes; needs --processes and --process. Not "
    "needed on TPU pods and under SLURM and Open MPI.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of the run.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse argv (the program's name first); an error ends the program with exit code 2.

    Returns:
        The overrides of the config's fields, --config.field=value.
    """
    overrides, others = split_overrides(argv[1:])
    try:
        if not {"--help", "-help", "-h"}.isdisjoint(others):
            print(__doc__, flags.FLAGS.module_help(__name__), sep="\n")
            sys.exit()
        remaining = flags.FLAGS([argv[0], *others])
        if len(remaining) > 1:
            raise UserError("argument", remaining[1], "flags are written --name=value")
        one_of("--mode", _MODE.value, MODES)
        if _PROFILE.present:
            one_of("--profile", _PROFILE.value, PROFILES)
            if _SWEEP.present:
                raise UserError("--profile", _PROFILE.value, "it is of one run: leave out --sweep")
        taken = MODES[_MODE.value]
        for name in {name for names in MODES.values() for name in names}.difference(taken):
            if flags.FLAGS[name].present:
                raise UserError(
                    f"--{name}", flags.FLAGS[name].value, f"{_MODE.value} has no use for it"
                )
        if overrides and _MODE.value == "report":
            raise UserError("argument", overrides[0], "a report takes runs as they were made")
        needs_config = _WORKDIR.value is None or _SWEEP.present
        if "config" in taken and _CONFIG.value is None and needs_config:
            raise UserError("--config", None, "give a file, such as configs/digits_ot.py")
        for name in ("input", "output"):
            if name in taken and flags.FLAGS[name].value is None:
                raise UserError(f"--{name}", None, flags.FLAGS[name].help)
        return overrides
    except (UserError, flags.Error) as error:
        stop(error)


def stop(error: Exception) -> NoReturn:
    """Report in one line why the run ends; exit with code 2 for a user error, else 1."""
    tell(error)
    processes.leave(1 if isinstance(error, RunStopped) else 2)


def main(overrides: list[str]) -> None:
    """Run the selected mode, as the only process or as one of several."""
    messages.set_up()
    stops.interrupt_on_stops()
    try:
        processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        check_jax()
        use_compilation_cache()
        jax.config.update("jax_enable_x64", False)  # whatever JAX_ENABLE_X64 says: see WORKSPACE.md
        if jax.process_index() == 0:
            messages.say_infos()
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
    """Run a mode with the values of its flags."""
    name = Path(_CONFIG.value).stem if _CONFIG.value else mode
    if _SWEEP.value:
        name = f"{name}_sweep"
    workdir = Path(_WORKDIR.value or Path("runs") / name).expanduser()
    processes.same_everywhere("--mode", mode)
    with full_disk_stops(workdir):
        if mode == "report":
            write_report([Path(run).expanduser() for run in _RUNS.value], workdir)
        elif mode == "compare":
            seeds = _seeds(_SEEDS.value or ["0"])
            modes.compare(_DATA.value, _METHODS.value, seeds, overrides, workdir)
        elif _SWEEP.value:
            sweep(_CONFIG.value, overrides, _SWEEP.value, workdir)
        elif mode == "config":
            _show_config(_config(workdir, overrides), overrides)
        else:
            _run_one(mode, _config(workdir, overrides), workdir)


def _config(workdir: Path, overrides: list[str]) -> FrozenConfigDict:
    """Load the config that the flags name, or that of the run in the workdir."""
    if _CONFIG.value is None:
        check_run(workdir)
    return load_config(_CONFIG.value or str(workdir / "config.json"), overrides)


def _show_config(config: FrozenConfigDict, overrides: list[str]) -> None:
    """Print every field of the config, and where its value comes from."""
    overridden = {override.partition("=")[0].lstrip("-") for override in overrides}
    print(show(config, _CONFIG.value or "config.json", overridden))


def _run_one(mode: str, config: FrozenConfigDict, workdir: Path) -> None:
    if mode == "fit_solver":
        modes.fit_run_solver(config, workdir, _STEP.value)
    elif mode == "generate":
        seeds, output = _generated_seeds(), Path(_OUTPUT.value).expanduser()
        modes.generate(config, workdir, seeds, _CLASSES.value, output, _STEP.value)
    elif mode == "generate_pairs":
        modes.generate_run_pairs(config, workdir, _STEP.value)
    elif mode == "upsample":
        pictures, output = (Path(p.value).expanduser() for p in (_INPUT, _OUTPUT))
        modes.upsample(config, workdir, pictures, output, _STEP.value)
    elif _PROFILE.value:
        modes.profile(config, workdir)
    else:
        modes.run(mode, config, workdir, _STEP.value)


def _seeds(texts: list[str]) -> list[int]:
    """Parse seeds and ranges of them, such as 0-63."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) < int(first):
            raise UserError("--seeds", text, "it takes whole numbers and ranges, such as 0,1,10-19")
        seeds += range(int(first), int(last or first) + 1)
    errors.seed("--seeds", max(seeds))
    if len(set(seeds)) < len(seeds):
        raise UserError("--seeds", ",".join(texts), "each seed is given once")
    return seeds


def _generated_seeds() -> list[int]:
    """Return the seeds of the samples that --n or --seeds asks for."""
    if (_N.value is None) == (_SEEDS.value is None):
        raise UserError("--n", _N.value, "give either --n or --seeds")
    if _SEEDS.value is not None:
        return _seeds(_SEEDS.value)
    errors.at_least("--n", _N.value, 1)
    return list(range(_N.value))


def open_standard_streams() -> None:
    """Open standard streams that are closed (``2>&-``); other files would get their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def start() -> None:
    """Run the command line of this process; the command ``flowmatch``, and main.py."""
    open_standard_streams()
    app.run(main, flags_parser=parse_flags)
