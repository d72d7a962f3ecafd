"""All fields of the configuration, by section.

Each field is declared once, in `model`, `network` or `running`, with its default, meaning, range,
and what its value identifies (see `field`). Rules between fields are in `rules`.
"""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict, FrozenConfigDict

from flowmatch_jax.config.checks import least
from flowmatch_jax.config.data import CONDITION, DATA, SOURCE
from flowmatch_jax.config.field import Field, Of, Section, at, copied, defaults, flat
from flowmatch_jax.config.model import (
    FLOW_MAP,
    GUIDANCE,
    MINIBATCH_OT,
    OBJECTIVE,
    PATH,
    SR3,
)
from flowmatch_jax.config.network import NETWORK
from flowmatch_jax.config.running import (
    EVALUATE,
    FIGURES,
    FIT_SOLVER,
    MAXIMUM_LIKELIHOOD,
    OPTIMIZER,
    PAIRS,
    SOLVER,
    TRAIN,
    UPSAMPLE,
)
from flowmatch_jax.runtime.errors import seed
from flowmatch_jax.runtime.text import aligned

FIELDS: Section = {
    "seed": Field(0, "Seed of the training run.", seed, Of.RUN | Of.SCORES),
    "method": Field(
        None, "Name in reports; unset: set by objective and path.", of=Of.ROW, kind=str
    ),
    "data": DATA,
    "source": SOURCE,
    "condition": CONDITION,
    "guidance": GUIDANCE,
    "path": PATH,
    "objective": OBJECTIVE,
    "maximum_likelihood": MAXIMUM_LIKELIHOOD,
    "minibatch_ot": MINIBATCH_OT,
    "flow_map": FLOW_MAP,
    "sr3": SR3,
    "network": NETWORK,
    "optimizer": OPTIMIZER,
    "train": TRAIN,
    "solver": SOLVER,
    "evaluate": EVALUATE,
    "fit_solver": FIT_SOLVER,
    "pairs": PAIRS,
    "upsample": UPSAMPLE,
    "figures": FIGURES,
    "mesh": {"fsdp": Field(1, "Devices that shard parameters and optimiser state.", least(1))},
}


def default_config() -> ConfigDict:
    """Create a configuration with every field at its default, which experiments' files modify."""
    return defaults(FIELDS)


def for_weights(config: ConfigDict | FrozenConfigDict) -> FrozenConfigDict:
    """Return a config that is built for its weights alone, on any number of devices.

    It has no scores of samples, whose extractor would be loaded, and its weights are not sharded.
    """
    config = copied(config)
    config.evaluate.extractor, config.evaluate.scores = None, ()
    config.mesh.fsdp = 1
    return FrozenConfigDict(config)


def show(config: ConfigDict, file: str, overridden: Collection[str]) -> str:
    """Return a table with a row for each field.

    Args:
        config: the config.
        file: the experiment's file, for the fields that it sets.
        overridden: the full paths that the command line sets, such as "config.train.steps".
    """
    usual = dict(flat(default_config().to_dict()))
    rows = [("field", "value", "set by", "meaning")]
    for name, value in flat(config.to_dict()):
        path = f"config.{name}"
        is_overridden = any(f"{given}.".startswith(f"{path}.") for given in overridden)
        by = "command line" if is_overridden else "" if value == usual[name] else file
        rows.append((path, repr(value), by, at(FIELDS, name).help))
    return aligned(rows, right=())
