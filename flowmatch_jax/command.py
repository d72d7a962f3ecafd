"""Train, evaluate and compare flow-matching models from the command line.

    python main.py --config=configs/digits_ot.py
    python main.py --mode=report --runs=runs/a,runs/b
    python main.py --mode=compare --data=digits --seeds=0,1,2
    python main.py --config=configs/digits_ot.py --profile=steps

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
from flowmatch_jax.config.show import show
from flowmatch_jax.report.report import write_report
from flowmatch_jax.runtime import messages, processes, stops
from flowmatch_jax.runtime.errors import RunStopped, UserError, one_of, tell
from flowmatch_jax.runtime.files import full_disk_stops
from flowmatch_jax.runtime.workdir import check_run, use_compilation_cache

logger = logging.getLogger("flowmatch_jax")

# mode -> its flags besides --workdir
MODES = {
    "train": ("config", "profile"),
    "evaluate": ("config", "step"),
    "sample": ("config", "step"),
    "figures": ("config",),
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
    "evaluate: evaluate the newest checkpoint; sample: draw samples from it; "
    "figures: draw the paper's figures for the run; upsample: enlarge your own images, --input, "
    "with a super-resolution model; report: tables and figures of several --runs; "
    "config: print every field of a config, and where it is set; "
    "compare: train, evaluate, draw and report all --methods on each of --data.",
)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint to use. Default: the newest.")
_INPUT = flags.DEFINE_string("input", None, "A picture to upsample, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the upsampled pictures.")
_RUNS = flags.DEFINE_list("runs", [], "Folders of the runs to report.")
_DATA = flags.DEFINE_list("data", ["checkerboard", "digits"], "Datasets to compare methods on.")
_METHODS = flags.DEFINE_list(
    "methods",
    None,
    "Methods to compare, as in configs/<data>_<method>.py. Default: "
    f"{','.join(modes.METHODS)}; for super-resolution {','.join(modes.SUPER_RESOLUTION_METHODS)}.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each method in a comparison.")
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "steps: instead of training, trace a few steps into <workdir>/profile and print their ten "
    "slowest operations.",
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
        taken = MODES[_MODE.value]
        for name in {name for names in MODES.values() for name in names}.difference(taken):
            if flags.FLAGS[name].present:
                raise UserError(
                    f"--{name}", flags.FLAGS[name].value, f"{_MODE.value} has no use for it"
                )
        if overrides and _MODE.value == "report":
            raise UserError("argument", overrides[0], "a report takes runs as they were made")
        needs_config = _MODE.value == "train" or _WORKDIR.value is None
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


def check_jax() -> None:
    """Raise UserError for settings of JAX with which the program cannot work."""
    if jax.config.jax_disable_jit:
        allowed = "training steps and solves are compiled; unset it"
        raise UserError("JAX_DISABLE_JIT", True, allowed)
    try:
        jax.devices()
    except RuntimeError as error:
        allowed = f"JAX finds no such devices ({str(error).splitlines()[0]}); unset it, or give cpu"
        raise UserError("JAX_PLATFORMS", jax.config.jax_platforms, allowed) from error


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
    workdir = Path(_WORKDIR.value or Path("runs") / name).expanduser()
    processes.same_everywhere("--mode", mode)
    with full_disk_stops(workdir):
        if mode == "report":
            write_report([Path(run).expanduser() for run in _RUNS.value], workdir)
        elif mode == "compare":
            seeds = [_seed(text) for text in _SEEDS.value]
            modes.compare(_DATA.value, _METHODS.value, seeds, overrides, workdir)
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
    if mode == "upsample":
        pictures, output = (Path(p.value).expanduser() for p in (_INPUT, _OUTPUT))
        modes.upsample(config, workdir, pictures, output, _STEP.value)
    elif _PROFILE.value:
        modes.profile(config, workdir)
    else:
        modes.run(mode, config, workdir, _STEP.value)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise UserError("--seeds", text, "it takes whole numbers, such as 0,1,2")
    return int(text)


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
