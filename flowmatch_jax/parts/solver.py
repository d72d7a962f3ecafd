"""The solver of an experiment, made from config.solver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.config.identity import fitted_to
from flowmatch_jax.config.rules import solver_of
from flowmatch_jax.objectives import WITHOUT_FIELD
from flowmatch_jax.parts import own
from flowmatch_jax.paths import GaussianPath, starts_without_data
from flowmatch_jax.runge_kutta import ADAPTIVE, STOCHASTIC
from flowmatch_jax.runtime.errors import UserError, section
from flowmatch_jax.runtime.own import blamed, is_own, resolve
from flowmatch_jax.sampling import fitted
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.sampling.linear import Coefficients
from flowmatch_jax.sampling.stochastic import NOISE_LEVELS, NoiseLevel
from flowmatch_jax.solvers import Solver
from flowmatch_jax.times import GRIDS


def make_solver(config: ConfigDict, path: GaussianPath) -> Solver:
    """Create the solver on a path, with its time grid from 0 to the path's end.

    A fitted solver is read by `make_fitted` instead.
    """
    solver = replace(solver_of(config.solver), path=path)
    if solver.steps is None:
        return solver
    grid = make_grid(config.solver, solver.steps, path)
    return replace(solver, steps=None, grid=grid, noise=make_noise(config.solver, path))


def make_likelihood_solver(config: ConfigDict) -> Solver:
    """Create the solver of likelihoods, with the config's tolerances; see `likelihood_method`."""
    solver = config.solver
    return Solver(likelihood_method(solver.method), solver.rtol, solver.atol)


def likelihood_arguments(config: ConfigDict, path: GaussianPath) -> dict[str, Any]:
    """Return the solver and the ends of `likelihood.log_prob` for a model of this path."""
    solver = make_likelihood_solver(config)
    return {"solver": solver, "source_std": path.source_std, "t1": path.t_end}


def likelihood_method(method: str) -> str:
    """Return the method of likelihoods: that of samples if it is adaptive, otherwise dopri5.

    A few fixed steps may be enough for samples, but they miss the large divergence near the data,
    so that the likelihood is wrong.
    """
    return method if method in ADAPTIVE else "dopri5"


def make_grid(config: ConfigDict, steps: int, path: GaussianPath) -> np.ndarray:
    """Create the time grid of fixed-step solvers, [steps + 1]."""
    with section("config.solver"):
        grid = resolve("grid", config.grid, GRIDS, config.grid_options)
        with blamed("grid", config.grid), jax.ensure_compile_time_eval():  # also inside jit
            times = np.asarray(grid(steps, path), np.float64)
        if is_own(config.grid):
            own.check_grid("grid", config.grid, times, steps, path)
        return times


def make_noise(config: ConfigDict, path: GaussianPath) -> NoiseLevel | None:
    """Create the noise level of a stochastic solver; None for other methods."""
    if config.method not in STOCHASTIC:
        return None
    name, scale = config.noise or "sigma", 1.0 if config.noise_scale is None else config.noise_scale
    if name == "diffusion" and starts_without_data(path):
        allowed = "this path is no diffusion; use sigma, or set config.solver.path to vp or ve"
        raise UserError("config.solver.noise", name, allowed)
    with section("config.solver"):
        level = resolve("noise", name, NOISE_LEVELS)
        if is_own(name):
            own.check_noise("noise", name, level, path)
    return lambda path, t: scale * level(path, t)


def make_fitted(config: ConfigDict, workdir: Path) -> Coefficients | None:
    """Read the fitted solver that the config asks for; None if it asks for another method.

    Args:
        config: the configuration.
        workdir: folder of the run, whose solver it is unless config.solver.file names a file.

    Raises:
        UserError: there is none, or it was fitted to another model.
    """
    if config.solver.method != "fitted" or config.objective.name in WITHOUT_FIELD:
        return None
    given, calls = config.guidance, config.solver.steps
    guidance = Guidance(given.scale, by_weak_model=given.weak_step is not None)
    file = config.solver.file or fitted.solver_file(workdir, calls, guidance)
    with section("config.solver"):
        return read_fitted(config, Path(file).expanduser(), calls)


def solver_settings(config: ConfigDict, coefficients: Coefficients | None) -> dict[str, Any]:
    """Return the settings of the solver that samples depend on.

    A fitted solver is identified by the hash of its coefficients, because its file may be written
    again or moved.
    """
    settings = select(FIELDS, config, Of.SCORES)["solver"]
    if coefficients is None:
        return settings
    return settings | {"sha256": fitted.content_hash(coefficients)}


def read_fitted(config: ConfigDict, file: Path, calls: int) -> Coefficients:
    """Read a fitted solver with this number of calls; raises UserError for another one."""
    coefficients, facts = fitted.read(file)
    if len(coefficients.t) != calls:
        raise UserError("steps", calls, f"the solver in {file} has {len(coefficients.t)} calls")
    for name, value in fitted_to(config).items():
        if facts.get(name) != value:
            allowed = f"it was fitted to another {name}; fit one with --mode=fit_solver"
            raise UserError("file", str(file), allowed)
    return coefficients
