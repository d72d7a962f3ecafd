"""Write the weights of a run as a .safetensors file.

    python -m flowmatch_jax.networks.export runs/digits_ot --to=digits.safetensors
    python -m flowmatch_jax.networks.export runs/converted --to=unet.safetensors --as=torchcfm

The file has the config in its metadata, and flowmatch_jax.networks.convert makes a run of it. With
--as=torchcfm it has the names of torchcfm's UNetModel, and the arguments of that.
Exit codes: 0 success; 2 user error, reported in one line; 1 any other error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from flowmatch_jax.config.running import WEIGHTS
from flowmatch_jax.exchange.files import FORMATS, export_run
from flowmatch_jax.runtime.errors import ArgumentParser, exit_code, one_of
from flowmatch_jax.runtime.files import full_disk_stops
from flowmatch_jax.runtime.mesh import check_jax
from flowmatch_jax.runtime.messages import is_wanted


def main(arguments: Sequence[str]) -> int:
    """Export the run that the command line names; returns the exit code."""
    logging.getLogger("absl").addFilter(is_wanted)
    return exit_code(lambda: _export(parse(arguments)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = ArgumentParser(
        prog="python -m flowmatch_jax.networks.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    add("--to", type=Path, required=True, help="the .safetensors file")
    add("--as", dest="form", default=FORMATS[0], help=f"{' | '.join(FORMATS)}")
    add("--weights", default="ema", help="ema | raw; default: ema")
    add("--step", type=int, help="step of the checkpoint; default: the newest")
    given = parser.parse_args(arguments)
    one_of("--as", given.form, FORMATS)
    one_of("--weights", given.weights, WEIGHTS)
    return given


def _export(given: argparse.Namespace) -> None:
    check_jax()
    workdir, file = given.workdir.expanduser(), given.to.expanduser()
    with full_disk_stops(file.parent):
        step = export_run(workdir, file, given.form, given.weights, given.step)
    print(f"{file}: {given.weights} weights of step {step}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
