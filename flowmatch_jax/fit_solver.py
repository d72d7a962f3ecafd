"""Fit a solver with few calls to a trained model, and keep it in the run's workdir."""

from __future__ import annotations

import itertools
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.config.identity import fitted_to
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation.samples import sample_inputs, source_batch
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.files import npz, write_atomically
from flowmatch_jax.runtime.mesh import gather, to_host
from flowmatch_jax.runtime.overlap import overlapped
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.sampling import fit
from flowmatch_jax.sampling.fitted import solver_file, write
from flowmatch_jax.sampling.linear import METHODS, Coefficients, calls_per_step
from flowmatch_jax.solvers import Solver
from flowmatch_jax.times import GRIDS

logger = logging.getLogger(__name__)

FIT_FIELDS = ("steps", "batch_size", "learning_rate", "times_only")
ACCURATE = Solver("dopri5", rtol=1e-6, atol=1e-6)


def fit_solver(
    experiment: Experiment, params: Params, workdir: Path, weights: dict[str, Any]
) -> None:
    """Fit a solver with config.fit_solver.calls calls to the model, and write it to the workdir.

    The fit begins with the method config.fit_solver.start. Its result is the best of the known
    methods and grids if that has a smaller error on held-out noises. If only the times are fitted,
    the grids of that method alone are compared. A stopped fit goes on where it was.

    Args:
        experiment: the experiment.
        params: the parameters.
        workdir: folder of the run.
        weights: what identifies the parameters in the run, such as their step; it is recorded.

    Raises:
        UserError: the model has no vector field, or the calls are not whole steps of the method.
    """
    check_fit(experiment)
    options = experiment.config.fit_solver
    grid_of = options.start if options.times_only else None
    path = solver_file(workdir, options.calls, experiment.guidance, grid_of)
    facts = weights | fitted_to(experiment.config)
    params = jax.jit(partial(gather, mesh=experiment.mesh))(params)
    pairs = accurate_pairs(experiment, params, path.with_name("pairs.npz"), facts)
    held_out, chosen_by, fitted_to_them = _parts(pairs, options.held_out)
    wanted = _wanted(experiment, fitted_to_them, chosen_by)
    errors_of = fit.make_errors(wanted)
    error = lambda solver: fit.typical(errors_of(params, solver, chosen_by))  # noqa: E731
    name, known, least = _best_known(experiment, error, [grid_of] if grid_of else METHODS)
    settings = json.dumps(facts | {"fit_solver": options.to_dict(), "least": least})
    state = _run(wanted, params, least, errors_of, _state_file(path), settings)
    best = wanted.coefficients(state.best) if state.least < least else known
    before, after = (errors_of(params, solver, held_out) for solver in (known, best))
    if fit.typical(after) > fit.typical(before):
        best, after = known, before
    facts |= {
        "noises": len(held_out),
        "squared_error": _summary(after),
        "best_known": {"method": name, "squared_error": _summary(before)},
    }
    if jax.process_index() == 0:
        write(path, best, facts)
        _state_file(path).unlink(missing_ok=True)
    _tell(path, facts, "" if grid_of is None else f" --config.solver.file={path}")


def _wanted(experiment: Experiment, pairs: fit.Pairs, chosen_by: fit.Pairs) -> fit.Fit:
    options = experiment.config.fit_solver
    return fit.Fit(
        field=lambda params, inputs: experiment.whole_field(params, **inputs),
        method=options.start,
        calls=options.calls,
        t_end=experiment.path.t_end,
        pairs=pairs,
        chosen_by=chosen_by,
        **{name: options[name] for name in FIT_FIELDS},
    )


def _summary(errors: np.ndarray) -> dict[str, float]:
    return {"geometric_mean": fit.typical(errors), "mean": float(errors.mean())}


def _tell(path: Path, facts: dict[str, Any], flag: str) -> None:
    fitted, other = facts["squared_error"], facts["best_known"]["squared_error"]
    logger.info(
        "Squared error on %d held-out noises: geometric mean %.3g, mean %.3g; of the best other "
        "method (%s) %.3g and %.3g. The solver is in %s; --config.solver.method=fitted "
        "--config.solver.steps=%s%s uses it.",
        *(facts["noises"], *fitted.values(), facts["best_known"]["method"], *other.values(), path),
        *(path.name.partition("_")[0], flag),
    )


def check_fit(experiment: Experiment) -> None:
    """Raise UserError unless the model has a vector field, and the calls are whole steps."""
    options = experiment.config.fit_solver
    if not experiment.is_flow:
        name = experiment.config.objective.name
        raise UserError("config.objective.name", name, "it has no vector field to solve")
    per_step = calls_per_step(options.start)
    if options.calls % per_step:
        allowed = f"a step of {options.start} takes {per_step} calls: give a multiple of that"
        raise UserError("config.fit_solver.calls", options.calls, allowed)


def accurate_pairs(
    experiment: Experiment, params: Params, file: Path, facts: dict[str, Any]
) -> fit.Pairs:
    """Solve accurately from config.fit_solver.noises noises, or read that from the file.

    Where samples start from a dataset, its training split takes the place of the noises.

    Args:
        experiment, params: the model.
        file: npz file that keeps the pairs for further fits to the model.
        facts: what the pairs depend on; pairs with other facts are made again.
    """
    config = experiment.config
    noises, size = config.fit_solver.noises, config.fit_solver.batch_size
    settings = json.dumps(facts | {"noises": noises, "batch_size": size, "seed": config.seed})
    known = _read_pairs(file, settings)
    if known is not None:
        return known
    solve_batch = partial(_solve_accurately, experiment, params, _accurate_solver(experiment))
    count = -(-noises // size)
    bar = progress_bar(
        overlapped(solve_batch, range(count)), total=count, desc="accurate solutions"
    )
    parts = []
    with bar, StopNotice() as notice:
        for part, converged in bar:
            if not converged:
                raise RunStopped("the accurate solver failed: the field is not finite")
            parts.append(part)
            if notice.reached(len(parts)):
                raise RunStopped(f"{notice.signal}: stopped; the same command begins again")
    pairs = jax.tree.map(lambda *x: np.concatenate(x)[:noises], *parts)
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, npz(settings=settings, x0=pairs.x0, x1=pairs.x1, **pairs.inputs))
    return pairs


def _accurate_solver(experiment: Experiment) -> Callable[..., tuple[Array, Array, Array]]:
    """Create a jitted function from a key, inputs and starts, or None for noise, to solutions."""
    shape = (experiment.config.fit_solver.batch_size, *experiment.train_data.shape)

    @jax.jit
    def solve(
        params: Params, batch_key: Array, inputs: dict[str, Array], x0: Array | None
    ) -> tuple[Array, Array, Array]:
        source_key, way_key = jax.random.split(batch_key)
        if x0 is None:
            x0 = draw_source(source_key, shape, experiment.path.source_std)
        solution = experiment.follow(params, x0, way_key, inputs, ACCURATE)
        return x0, solution.x, solution.converged

    return solve


def _solve_accurately(
    experiment: Experiment, params: Params, solve: Callable[..., Any], batch: int
) -> tuple[fit.Pairs, bool]:
    """Solve one batch; returns its pairs and whether the solver converged."""
    config, source = experiment.config, experiment.source
    key = jax.random.fold_in(jax.random.key(config.seed), 2)  # samples fold in 0, likelihoods 1
    size = config.fit_solver.batch_size
    inputs = sample_inputs(experiment, size, batch)
    given = source and source_batch(source.train, size, batch)
    x0, x1, converged = solve(params, jax.random.fold_in(key, batch), inputs, given)
    return jax.tree.map(to_host, fit.Pairs(x0, x1, inputs)), bool(converged)


def _read_pairs(file: Path, settings: str) -> fit.Pairs | None:
    if not file.exists():
        return None
    try:
        with np.load(file) as held:
            if str(held["settings"]) != settings:
                return None
            inputs = {name: held[name] for name in {*held} - {"settings", "x0", "x1"}}
            return fit.Pairs(held["x0"], held["x1"], inputs)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read, and is made again: %s", file, error)
        return None


def _parts(pairs: fit.Pairs, held_out: int) -> list[fit.Pairs]:
    """Split pairs into those held out, half as many that choose a solver, and the rest."""
    ends = (0, held_out, held_out + held_out // 2, len(pairs))
    return [pairs.at(slice(*ends)) for ends in itertools.pairwise(ends)]


def _run(
    wanted: fit.Fit, params: Params, least: float, errors_of: Any, file: Path, settings: str
) -> fit.State:
    """Take the steps of the fit, from the saved state if there is one, saving each check."""
    state = _read_state(file, settings, wanted.init(least))
    total, begun = wanted.steps, int(state.step)
    with progress_bar(total=total, initial=begun, desc="fit") as bar, StopNotice() as notice:
        for reached in fit.run(wanted, params, state, errors_of):
            state = reached
            bar.update(int(state.step) - bar.n)
            bar.set_postfix_str(f"error {float(state.least):.3g}")
            if jax.process_index() == 0:
                saved = {"settings": settings, "state": serialization.to_state_dict(state)}
                write_atomically(file, serialization.msgpack_serialize(saved))
            if notice.reached(int(state.step)):
                raise RunStopped(f"{notice.signal}: stopped; the same command goes on")
    return state


def _read_state(file: Path, settings: str, new: fit.State) -> fit.State:
    """Return the state in the file, or the new one if there is none of these settings."""
    if not file.exists():
        return new
    try:
        known = serialization.msgpack_restore(file.read_bytes())
        if known["settings"] != settings:
            return new
        state = serialization.from_state_dict(new, known["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read, and the fit starts over: %s", file, error)
        return new
    logger.info("The fit goes on at step %d.", state.step)
    return state


def _state_file(path: Path) -> Path:
    return path.with_suffix(".partial")


def _best_known(
    experiment: Experiment, error: Callable[[Coefficients], float], methods: Sequence[str]
) -> tuple[str, Coefficients, float]:
    path, n = experiment.path, experiment.config.fit_solver.calls
    grids = {name: partial(grid, path=path) for name, grid in GRIDS.items()}
    return fit.best_known(error, n, grids, dict.fromkeys(methods, path))
