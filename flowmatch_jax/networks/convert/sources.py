"""Open files of weights and find the state dicts in them.

A file of .safetensors is one state dict. A checkpoint of torch.save may hold several, such as
"net_model" and "ema_model" of torchcfm, beside the state of an optimiser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.networks.convert.torch_files import opened_torch
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json

StateDict = Mapping[str, Tensor]

TORCH = (".pt", ".pth", ".ckpt", ".bin")
SAFETENSORS = ".safetensors"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
}
AVERAGED = re.compile("ema|average")
# What wrappers put before the names of a network's tensors.
WRAPPERS = ("module.", "_orig_mod.", "model.")
SHADOWS = "shadow_params."  # averaged parameters in the order of a model's, of flow_matching's EMA


@contextmanager
def opened_weights(path: Path, which: str | None = None) -> Iterator[dict[str, Tensor]]:
    """Open a file of weights; yields a state dict, whose tensors can be read while it is open.

    Args:
        path: a file of .safetensors, or of torch.save (.pt, .pth, .ckpt, .bin).
        which: name of the state dict, of a file with several; None: the averaged one (EMA).

    Raises:
        UserError: the file is missing, damaged or of another kind, it has no state dict of that
            name, or none or several that may be meant.
    """
    if path.suffix == SAFETENSORS:
        yield _chosen(path, {"": safetensors_of(path)}, which)
    elif path.suffix in TORCH:
        with opened_torch(path) as held:
            yield _chosen(path, _state_dicts(held), which)
    else:
        allowed = f"give a file that ends in {SAFETENSORS}, {', '.join(TORCH)}"
        raise UserError("SOURCE", str(path), allowed)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; raises UserError if it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise _no_safetensors(path, error) from error


def settings_of(path: Path) -> dict[str, Any]:
    """Return config.json beside a file of diffusers; raises UserError if it cannot be read."""
    beside = path.with_name("config.json")
    try:
        settings = read_json(beside)
    except (OSError, Unreadable) as error:
        allowed = f"diffusers keeps the network's settings beside it, in config.json ({error})"
        raise UserError("SOURCE", str(path), allowed) from error
    if not isinstance(settings, dict):
        raise UserError("SOURCE", str(beside), "it must be the config.json of a UNet2DModel")
    return settings


def safetensors_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file; raises UserError if it cannot be read."""

    def tensor(file: Any, name: str) -> Tensor:
        part = file.get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise UserError("SOURCE", str(path), f"{name} has the dtype {part.get_dtype()}")

        def read() -> np.ndarray:
            # Each read opens the file, so that its pages do not stay in memory.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return Tensor(tuple(part.get_shape()), DTYPES[part.get_dtype()], read)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: tensor(file, name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise _no_safetensors(path, error) from error


def _no_safetensors(path: Path, error: Exception) -> UserError:
    allowed = f"it must be a whole file of safetensors ({error})"
    return UserError("SOURCE", str(path), allowed)


def _state_dicts(held: Any) -> dict[str, StateDict]:
    """Return the state dicts in the content of a checkpoint by name; "" if it is one itself."""
    if _is_state_dict(held):
        return {"": held}
    parts = held.items() if isinstance(held, dict) else ()
    return {str(name): part for name, part in parts if _is_state_dict(part)}


def _is_state_dict(held: Any) -> bool:
    return (
        isinstance(held, dict)
        and len(held) > 0
        and all(isinstance(name, str) and isinstance(x, Tensor) for name, x in held.items())
    )


def _chosen(path: Path, found: Mapping[str, StateDict], which: str | None) -> dict[str, Tensor]:
    """Choose a state dict, without what wrappers put before its names."""
    found = {name: part for held in found.items() for name, part in _unwrapped(*held).items()}
    if not found:
        raise UserError("SOURCE", str(path), "it holds no state dict")
    names = ", ".join(name or "one without a name" for name in found)
    if which is not None:
        if which not in found:
            raise UserError("--weights", which, f"the file holds: {names}")
        return dict(found[which])
    averaged = [name for name in found if AVERAGED.search(name)]
    candidates = averaged if len(found) > 1 else list(found)
    if len(candidates) != 1:
        raise UserError("--weights", None, f"give one of those that the file holds: {names}")
    return dict(found[candidates[0]])


def _unwrapped(name: str, state: StateDict) -> dict[str, StateDict]:
    """Return a state dict by name; of one with averaged shadows, those too, as "ema"."""
    shadows = [n for n in state if n.startswith(SHADOWS)]
    if not shadows:
        return {name: _stripped(state)}
    raw = {n: x for n, x in state.items() if n not in shadows and n != "num_updates"}
    if [x.shape for x in raw.values()] != [state[n].shape for n in shadows]:
        return {"raw": _stripped(raw)}
    ema = dict(zip(raw, (state[n] for n in shadows), strict=True))
    return {"raw": _stripped(raw), "ema": _stripped(ema)}


def _stripped(state: StateDict) -> StateDict:
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            return _stripped({name.removeprefix(wrapper): x for name, x in state.items()})
    return state
