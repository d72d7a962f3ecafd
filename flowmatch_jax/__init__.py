"""Flow Matching for Generative Modeling (Lipman et al., ICLR 2023) in JAX and Flax.

The paper, as functions:

    paths         conditional paths p_t(x | x_1): `optimal_transport`, `variance_preserving`, ...
    couplings     the source p_0, and how x_0 and x_1 are paired
    times         how t is drawn in training, and the grids of fixed solvers
    objectives    flow matching and the objectives that it is compared with
    predictions   from a network's output to the vector field v_t(x)
    marginals     p_t and u_t of finite datasets and Gaussian mixtures in closed form
    solvers       `Solver` and `integrate`: dx/dt = v(t, x)
    likelihood    log p_1(x_1), bits/dim
    networks      `UNet` and `MLP`

and the modules that build on them:

    config, experiment    the checked configuration, and the components built from it
    data, metrics         datasets, distances between images
    sampling              guidance, stochastic and ancestral sampling, tiling
    training, evaluation, report, modes    the commands
    model                 `load`: a trained model in a script
    runtime               devices, processes, files, errors

The names below can be imported from here; each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# diffrax checks its arguments by host callbacks, and JAX keeps no program with these in its
# compilation cache. With "nan" a failed check makes NaN, which `Solution.converged` reports.
os.environ.setdefault("EQX_ON_ERROR", "nan")

# name -> the module that it is defined in
_PUBLIC = {
    "GaussianPath": "paths",
    "optimal_transport": "paths",
    "variance_preserving": "paths",
    "variance_exploding": "paths",
    "matching": "objectives",
    "vector_field": "predictions",
    "Solver": "solvers",
    "integrate": "solvers",
    "log_prob": "likelihood",
    "UNet": "networks.unet",
    "MLP": "networks.mlp",
    "build": "experiment",
    "load": "model",
    "Model": "model",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
