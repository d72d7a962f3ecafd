"""Make a run of the weights of another project, or of a file of flowmatch_jax.networks.export.

    python -m flowmatch_jax.networks.convert weights.pt --from=torchcfm --to=runs/converted \\
        --config=configs/cifar10_ot.py --size=32 --head_channels=64

The run keeps the data, the training, the solver and the evaluation of --config, whose fields may be
overridden by --config.section.field=value. The network is read off the file.
Exit codes: 0 success; 2 user error, reported in one line; 1 any other error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.arrays import Params
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.exchange.configs import SCHEDULES, with_network
from flowmatch_jax.exchange.files import is_exported, read_exported
from flowmatch_jax.exchange.workdirs import (
    check_new,
    facts_of_absent_data,
    facts_of_data,
    write_workdir,
)
from flowmatch_jax.networks.convert.kinds import KINDS, ORDERS, Told, convert
from flowmatch_jax.networks.convert.own import FORMAT
from flowmatch_jax.networks.convert.sources import opened_weights, settings_of
from flowmatch_jax.runtime.errors import (
    ArgumentParser,
    UserError,
    at_least,
    exit_code,
    one_of,
)
from flowmatch_jax.runtime.files import full_disk_stops
from flowmatch_jax.runtime.mesh import check_jax
from flowmatch_jax.runtime.messages import is_wanted

Facts = dict[str, dict[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """Convert the file that the command line names; returns the exit code."""
    logging.getLogger("absl").addFilter(is_wanted)
    overrides, others = split_overrides(list(arguments))
    return exit_code(lambda: _convert(parse(others), overrides))


def _convert(given: argparse.Namespace, overrides: list[str]) -> None:
    check_jax()
    check_new(given.to)
    config, facts, params = _own(given, overrides) or _foreign(given, overrides)
    with full_disk_stops(given.to.parent):
        write_workdir(config, facts, params, given.to)
    print(f"The run is in {given.to}: python main.py --workdir={given.to} --mode=sample")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line, before any file is read."""
    parser = ArgumentParser(
        prog="python -m flowmatch_jax.networks.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "source", metavar="SOURCE", type=_path, help="a .safetensors, .pt, .pth, .ckpt or .bin file"
    )
    add("--from", dest="project", help=f"{', '.join(KINDS)}; {FORMAT} is recognised")
    add("--to", type=_path, required=True, help="folder of the new run")
    add("--config", help="experiment whose data the network was trained on")
    add("--size", type=int, help="side of the images; default: that of the config's data, opened")
    add("--heads", type=int, help="attention heads, or else:")
    add("--head_channels", type=int, help="channels per attention head")
    add(
        "--attention_order",
        help=f"order of q, k, v: {' | '.join(ORDERS)}; default: new of flow_matching and "
        "diffusers, else legacy",
    )
    add("--weights", help="state dict to take, of a file with several; default: the averaged one")
    add("--schedule", default="linear", help="noise levels of a diffusion: linear | cosine")
    add("--low_resolution", type=int, help="side of the images that an upsampler is given")
    given = parser.parse_args(arguments)
    if given.project is not None:
        one_of("--from", given.project, (*KINDS, FORMAT))
    one_of("--schedule", given.schedule, SCHEDULES)
    if given.attention_order is not None:
        one_of("--attention_order", given.attention_order, ORDERS)
    for name in ("size", "heads", "head_channels", "low_resolution"):
        if getattr(given, name) is not None:
            at_least(f"--{name}", getattr(given, name), 1)
    return given


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _own(
    given: argparse.Namespace, overrides: list[str]
) -> tuple[ConfigDict, Facts, Params] | None:
    """Read a file of this package; None if it is another one."""
    if given.project not in (None, FORMAT) or not is_exported(given.source):
        if given.project in (None, FORMAT):
            allowed = f"name the project of the file: {', '.join(KINDS)}"
            raise UserError("--from", given.project, allowed)
        return None
    unused = {"--config": given.config, "an override": overrides or None, "--size": given.size}
    for flag, value in unused.items():
        if value is not None:
            raise UserError(flag, value, "the file has its own config: leave it out")
    return read_exported(given.source)


def _foreign(given: argparse.Namespace, overrides: list[str]) -> tuple[ConfigDict, Facts, Params]:
    """Read a file of another project."""
    if given.config is None:
        allowed = "name the experiment whose data and training the run has: configs/cifar10_ot.py"
        raise UserError("--config", None, allowed)
    base = load_config(given.config, overrides)
    facts = facts_of_data(base) if given.size is None else None
    told = _told(given, given.size if facts is None else facts["train"]["shape"][0])
    with opened_weights(given.source, given.weights) as state:
        converted = convert(given.project, given.source, state, told)
    network = converted.network
    if facts is None:
        shape = (told.side, told.side, network.out_channels)
        facts = facts_of_absent_data(base, shape, network.num_classes)
    _check_data(facts["train"], network.out_channels, network.num_classes)
    config = with_network(base, converted, given.low_resolution, given.schedule)
    return config, facts, converted.params


def _told(given: argparse.Namespace, side: int) -> Told:
    """Return what the flags tell, and of a file of diffusers its config.json."""
    settings = settings_of(given.source) if given.project == "diffusers" else {}
    head_channels = given.head_channels
    if given.heads is None and head_channels is None and settings:
        head_channels = settings.get("attention_head_dim", 8)
    return Told(
        side=side,
        heads=given.heads,
        head_channels=head_channels,
        order=given.attention_order,
        is_conditional=given.low_resolution is not None,
        settings=settings,
    )


def _check_data(facts: dict[str, Any], channels: int, classes: int | None) -> None:
    """Raise UserError unless images of the data are those of the network."""
    if len(facts["shape"]) != 3 or facts["shape"][-1] != channels:
        allowed = f"the network is of images with {channels} channels: give --config of such data"
        raise UserError("config.data.name", f"{facts['name']} {facts['shape']}", allowed)
    if classes is not None and facts["num_classes"] != classes:
        allowed = f"the network has {classes} classes, and the data {facts['num_classes']}"
        raise UserError("config.data.name", facts["name"], allowed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
