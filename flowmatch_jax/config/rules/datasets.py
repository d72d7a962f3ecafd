"""The choice of the dataset and of the source, and the rules of sources other than noise."""

from __future__ import annotations

from ml_collections import ConfigDict

from flowmatch_jax.config.data import SOURCE
from flowmatch_jax.config.field import defaults, flat, plain
from flowmatch_jax.couplings import MINIBATCH_OT
from flowmatch_jax.data import sets
from flowmatch_jax.map_objectives import MAP_OBJECTIVES
from flowmatch_jax.runtime.errors import UserError, section

WITH_SOURCE = ("flow_matching", *MAP_OBJECTIVES)  # objectives that take x_0 from a dataset


def data_options(config: ConfigDict) -> sets.Options:
    """Convert config.data to the options of `sets`."""
    return _options(config, config, config.storage)


def source_options(config: ConfigDict) -> sets.Options:
    """Convert config.source to the options of `sets`; its items are in memory."""
    return _options(config.source, config.data, "memory")


def _options(chosen: ConfigDict, kept: ConfigDict, storage: str) -> sets.Options:
    return sets.Options(
        name=chosen.name,
        version=chosen.version,
        data_dir=kept.data_dir,
        size=chosen.size,
        classes=tuple(chosen.classes),
        storage=storage,
        max_corrupt=kept.max_corrupt,
        folder=sets.FolderOptions(**chosen.folder),
        arrays=sets.ArrayOptions(**chosen.arrays),
        options=dict(chosen.options),
    )


def check_source(config: ConfigDict) -> None:
    """Raise UserError unless samples start from noise, or the run can start them from data."""
    source, objective = config.source, config.objective
    if source.name is None:
        unset = dict(flat(plain(defaults(SOURCE))))
        for field, value in flat(plain(source)):
            if value != unset[field]:
                allowed = "samples start from noise: name a dataset in config.source.name"
                raise UserError(f"config.source.{field}", value, allowed)
        return
    with section("config.source"):
        source_options(config).validate()
        if source.paired:
            _check_order(config)
    objectives = ("flow_matching",) if source.noise else WITH_SOURCE
    couplings = ("independent",) if source.paired else ("independent", MINIBATCH_OT)
    for field, value, possible in (
        ("objective.name", objective.name, objectives),
        ("objective.predicts", objective.predicts, ("velocity",)),
        ("objective.coupling", objective.coupling, couplings),
        ("path.name", config.path.name, ("ot",)),
        ("data.dequantisation", config.data.dequantisation, ("uniform",)),
        ("condition.low_resolution", config.condition.low_resolution, (None,)),
        ("solver.path", config.solver.path, (None,)),
    ):
        if value not in possible:
            use = " or ".join(map(str, possible))
            allowed = f"samples start from a dataset (config.source.name): use {use}"
            raise UserError(f"config.{field}", value, allowed)


def _check_order(config: ConfigDict) -> None:
    """Raise UserError if unreadable images may be left out, so that items move."""
    names = (config.data.name, config.source.name)
    if config.data.max_corrupt and any(name in (*sets.PREPARED, "folder") for name in names):
        allowed = "pairs of items need all images: set config.data.max_corrupt to 0"
        raise UserError("paired", True, allowed)
