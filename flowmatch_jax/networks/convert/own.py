"""Parameters of this package's networks as named tensors, unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.runtime.errors import UserError

FORMAT = "flowmatch_jax"  # of a file's metadata


def named(params: Params) -> dict[str, jax.Array]:
    """Return the parameters by their path, joined with dots."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def read_own(source: Path, state: Mapping[str, Tensor], layout: Params) -> Params:
    """Read parameters that were written by name, with the same bits.

    Args:
        source: file of the state dict, for messages.
        state: the tensors by name.
        layout: shapes and dtypes of the network's parameters.

    Raises:
        UserError: a tensor is missing, superfluous, or of another shape or dtype.
    """
    wanted = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in named(layout).items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            shape, dtype = found.get(name, ("none", ""))
            allowed = f"these are weights of another network: {name} has {shape} {dtype}"
            raise UserError("SOURCE", str(source), allowed)
    return jax.tree.unflatten(jax.tree.structure(layout), [state[n].read() for n in wanted])
