"""Functions that build what an experiment takes its data from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flowmatch_jax.config.rules import minibatch_ot
from flowmatch_jax.config.rules.datasets import data_options, source_options
from flowmatch_jax.couplings import MINIBATCH_OT, PAIRED
from flowmatch_jax.data import sets
from flowmatch_jax.data.dataset import Dataset, Items, RecordedDataset, Splits
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.data.pairs import PairOptions, open_pairs
from flowmatch_jax.runtime.errors import UserError, section


def make_data(config: ConfigDict, recorded: dict[str, Any] | None) -> Splits:
    """Open the dataset of config.data.

    Args:
        config: config.data.
        recorded: the facts of its splits, which a run has recorded. With them, the splits are
            opened later, when their items are needed.

    Raises:
        UserError: the dataset is not available, or points are to be mirrored.
    """
    data = Splits(*(_open_or_recorded(config, split, recorded) for split in Splits._fields))
    if config.flip and not data.train.is_image:
        allowed = f"{data.train.name} is a set of points: leave it off"
        raise UserError("config.data.flip", True, allowed)
    return data


def _open_or_recorded(
    config: ConfigDict, split: str, recorded: dict[str, Any] | None
) -> Dataset | RecordedDataset:
    facts = (recorded or {}).get(split)
    if facts is None:
        return open_dataset(config, split)
    return RecordedDataset(facts, partial(open_dataset, config, split))


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """Open the "train" or "test" split of the dataset that config.data names."""
    with section("config.data"):
        return _opened(data_options(config), split)


def make_source(config: ConfigDict, data: Splits, recorded: dict[str, Any] | None) -> Splits | None:
    """Open the dataset that samples start from; None if it is noise.

    Args:
        config: the whole config.
        data: the data, whose items have the same shape.
        recorded: as in `make_data`; the facts of the source are in "source".

    Raises:
        UserError: the items have another shape, are of another number although they are paired, or
            are no array.
    """
    if config.source.name is None:
        return None

    def open_split(split: str) -> Dataset:
        with section("config.source"):
            return _opened(source_options(config), split)

    if recorded and "source" in recorded:
        facts = recorded["source"]
        return Splits(
            *(
                RecordedDataset(facts[split], partial(open_split, split), "config.source")
                for split in Splits._fields
            )
        )
    source = Splits(*map(open_split, Splits._fields))
    for start, end in zip(source, data, strict=True):
        got = f"{start.name}, {start.split} split: {len(start)} items of shape {start.shape}"
        if not isinstance(start.x, np.ndarray | Items):
            allowed = "they are read one by one, and x_0 of a batch at once: give an array"
            raise UserError("config.source.name", got, allowed)
        if start.shape != end.shape:
            raise UserError("config.source.name", got, f"those of {end.name} have {end.shape}")
        if config.source.paired and len(start) != len(end):
            allowed = f"{end.name} has {len(end)}, and items are paired by their numbers"
            raise UserError("config.source.name", got, allowed)
    return source


def with_starts(data: Splits, source: Splits) -> Splits:
    """Return the data with item n of the source as the start of item n."""
    return Splits(*(replace(own, x0=start.x) for own, start in zip(data, source, strict=True)))


def make_pairs(config: ConfigDict, data: Dataset | RecordedDataset) -> Splits | None:
    """Open the pairs of noise and samples that the run is trained on; None for other couplings."""
    if config.objective.coupling != PAIRED:
        return None
    with section("config.data.pairs"):
        return open_pairs(PairOptions(**config.data.pairs), data, config.condition.labels)


def make_pairing(
    config: ConfigDict, levels: int | None, seed: int, source: Dataset | None = None
) -> Pairing | None:
    """Create what draws x_0 on the host; None if a coupling draws it, or the data have theirs.

    Args:
        config: the whole config.
        levels: grey levels of the data.
        seed: seed of the draws.
        source: split of the dataset that x_0 is drawn from; None: noise.
    """
    transport = minibatch_ot(config) if config.objective.coupling == MINIBATCH_OT else None
    source = None if config.source.paired else source
    if transport is None and source is None:
        return None
    return Pairing(transport, levels, config.condition.labels, seed, source=source)


def _opened(options: sets.Options, split: str) -> Dataset:
    dataset = sets.open_dataset(options, split)
    dataset.validate()
    return dataset
