"""Flow matching from the command line: train, evaluate, sample.

    python main.py --config=configs/digits_ot.py

Exit codes: 0 done; 2 a mistake in the flags or the config, told in one line; 1 anything else.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from flowmatch_jax.arrays import Params
from flowmatch_jax.errors import UserError, one_of
from flowmatch_jax.evaluation.evaluate import evaluate
from flowmatch_jax.evaluation.samples import draw, make_sampler
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.training import checkpoints
from flowmatch_jax.training.loop import train
from flowmatch_jax.training.mesh import make_mesh, with_shardings
from flowmatch_jax.workdir import has_checkpoint, open_workdir

MODES = ("train", "evaluate", "sample")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; override a field with --config.section.field=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<config's name>.")
_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "train: train to the last step, going on where the workdir left off, then evaluate; "
    "evaluate: score the newest checkpoint; sample: draw a picture of samples from it.",
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse argv (the program's name first); a mistake in it ends the program with code 2."""
    given = named_values(argv[1:])
    # What follows a colon is the config file's own argument.
    path = given.pop("config", "").partition(":")[0]
    try:
        if path and not Path(path).is_file():
            raise UserError("--config", path, "there is no such file; see configs/")
        remaining = flags.FLAGS(argv)
        if len(remaining) > 1:
            raise UserError("argument", remaining[1], "flags are written --name=value")
        if flags.FLAGS.config is None:
            raise UserError("--config", None, "give a file, such as configs/digits_ot.py")
        one_of("--mode", flags.FLAGS.mode, MODES)
        return remaining
    except UserError as error:
        stop(error)
    except SyntaxError as error:
        stop(UserError("--config", path, f"it is not a config file: {error}"))
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        stop(explain(error, path, given) if path else error)


def named_values(arguments: list[str]) -> dict[str, str]:
    """{name: value} of flags written --name=value or --name value."""
    values, name = {}, None
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            values[name] = value
            name = None if equals else name
        elif name is not None:
            values[name], name = argument, None
    return values


def explain(error: Exception, path: str, given: dict[str, str]) -> Exception:
    """The mistake behind an error of the flag parser's, with the field and what it may be.

    Args:
        path: of the config file.
        given: the other flags, name -> value.
    """
    defaults = runpy.run_path(path)["get_config"]()
    for name, value in given.items():
        node = defaults
        for field in name.split(".")[1:]:
            if not isinstance(node, ConfigDict) or field not in node:
                fields = ", ".join(node) if isinstance(node, ConfigDict) else "none"
                return UserError(f"--{name}", value, f"no such field; there are: {fields}")
            section, node = node, node[field]
        if f"--{name}={value}:" in str(error) and name.startswith("config."):
            kind = section.get_type(field).__name__
            return UserError(f"--{name}", value, f"it takes a value of type {kind}")
    return error


def stop(error: Exception) -> NoReturn:
    """Tell the user's mistake in one line and exit with code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told of another one."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "flowmatch_jax" / "jax"))


def newest_weights(
    experiment: Experiment, workdir: Path, names: tuple[str, ...]
) -> tuple[dict[str, Params], int]:
    """The weights of the workdir's newest checkpoint, by kind, and its step."""
    shapes = jax.eval_shape(experiment.init_params, jax.random.key(0))
    if not has_checkpoint(workdir):
        raise UserError("--workdir", str(workdir), "no checkpoint there yet; train first")
    with checkpoints.open_checkpoints(workdir, read_only=True) as saved:
        step = saved.latest_step()
        checkpoints.check_network(saved, shapes)
        layout = with_shardings(shapes, make_mesh())
        weights = {name: checkpoints.restore_weights(saved, step, name, layout) for name in names}
    return weights, step


def main(argv: list[str]) -> None:
    """Run the mode asked for."""
    use_compilation_cache()
    # This package's own messages; of the libraries', only warnings.
    absl.logging.set_verbosity(absl.logging.WARNING)
    if jax.process_index() == 0:
        logging.getLogger("flowmatch_jax").setLevel(logging.INFO)
    config = FrozenConfigDict(_CONFIG.value)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    try:
        experiment = build(config)
        open_workdir(workdir, config)
        sampler = make_sampler(experiment)
        if _MODE.value == "train":
            train(experiment, workdir, partial(draw, experiment, sampler, workdir, "ema"))
        weights, step = newest_weights(experiment, workdir, config.evaluate.weights)
        if _MODE.value == "sample":
            for kind, params in weights.items():
                draw(experiment, sampler, workdir, kind, params, step, keep_arrays=True)
        else:
            evaluate(experiment, sampler, weights, step, workdir)
    except UserError as error:
        stop(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
