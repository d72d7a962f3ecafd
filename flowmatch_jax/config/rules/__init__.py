"""Rules between fields that can be checked without building the experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flowmatch_jax import likelihood
from flowmatch_jax.config.field import check, plain
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.config.rules.datasets import check_source, data_options
from flowmatch_jax.config.rules.stochastic import check_score
from flowmatch_jax.couplings import MINIBATCH_OT, PAIRED, MinibatchOT
from flowmatch_jax.data.pairs import PairOptions
from flowmatch_jax.map_objectives import MAP_OBJECTIVES, MapOptions
from flowmatch_jax.metrics.scores import SCORES
from flowmatch_jax.objectives import WITHOUT_COUPLING, WITHOUT_FIELD
from flowmatch_jax.paths import optimal_transport
from flowmatch_jax.runge_kutta import STOCHASTIC
from flowmatch_jax.runtime.errors import UserError, section
from flowmatch_jax.runtime.own import is_own
from flowmatch_jax.solvers import ADAPTIVE, FLOW_MAP, Solver
from flowmatch_jax.times import GRIDS, TIMES, uniform_log_snr

# (section, field that may name a user's own part, field of its options)
OWN = (
    ("data", "name", "options"),
    ("source", "name", "options"),
    ("path", "name", "options"),
    ("objective", "name", "options"),
    ("objective", "coupling", "coupling_options"),
    ("network", "name", "options"),
)


def validate(config: ConfigDict) -> None:
    """Raise UserError for a field that is out of its range or conflicts with another field."""
    check(FIELDS, config)
    for section_name, field, options in OWN:
        _options(f"config.{section_name}", config[section_name], field, options)
    with section("config.objective"):
        _time(config.objective)
        _coupling(config)
    with section("config.minibatch_ot"):
        minibatch_ot(config).validate()
    with section("config.data"):
        _data(config.data)
    with section("config.train"):
        _train(config.train)
    with section("config.guidance"):
        _guidance(config.guidance)
    with section("config.solver"):
        _solver(config.solver)
        if config.solver.path is not None and config.objective.name in WITHOUT_FIELD:
            allowed = f"{config.objective.name} has no vector field to follow: leave it unset"
            raise UserError("path", config.solver.path, allowed)
    check_score(config, config.solver.method)
    check_source(config)
    _pairs(config)
    _flow_map(config)
    if config.solver.method == FLOW_MAP:
        check_flow_map(config)
    with section("config.maximum_likelihood"):
        solver_of(config.maximum_likelihood).validate()
        likelihood.validate_solver(solver_of(config.maximum_likelihood))
    with section("config.evaluate"):
        _likelihoods(config.evaluate)
        if config.evaluate.extractor is not None:
            _scores(config.evaluate)
    with section("config.fit_solver"):
        _fit_solver(config.fit_solver)


def _options(prefix: str, config: ConfigDict, field: str, options: str) -> None:
    if config[options] and not is_own(config[field] or ""):
        allowed = f"only a part of your own takes any, and {prefix}.{field} is {config[field]!r}"
        raise UserError(f"{prefix}.{options}", config[options].to_dict(), allowed)


def solver_of(config: ConfigDict) -> Solver:
    """Convert a section with a solver's fields to a `Solver` without grid, path and noise."""
    names = {field.name for field in fields(Solver)} - {"grid", "path", "noise"}
    return Solver(**{name: config[name] for name in names.intersection(config)})


def _data(config: ConfigDict) -> None:
    data_options(config).validate()
    if config.workers and config.storage != "records":
        allowed = "worker processes are used with storage=records only: leave it 0"
        raise UserError("workers", config.workers, allowed)


def _pairs(config: ConfigDict) -> None:
    """Raise UserError unless the run takes pairs of noise and samples, and they are given."""
    given, coupling = PairOptions(**config.data.pairs), config.objective.coupling
    with section("config.data.pairs"):
        given.validate()
    if (coupling == PAIRED) != (given.folder is not None):
        if coupling == PAIRED:
            allowed = "the coupling paired takes them: name a folder of --mode=generate_pairs"
            raise UserError("config.data.pairs.folder", None, allowed)
        allowed = f"pairs bring their own noise: with config.data.pairs.folder use {PAIRED}"
        raise UserError("config.objective.coupling", coupling, allowed)
    if coupling != PAIRED:
        return
    for field, value, needed, reason in (
        ("condition.low_resolution", config.condition.low_resolution, None, "have none"),
        ("data.dequantisation", config.data.dequantisation, "uniform", "are samples already"),
        ("data.storage", config.data.storage, "memory", "are read from their file"),
    ):
        if value != needed:
            raise UserError(f"config.{field}", value, f"pairs {reason}: use {needed}")
    name = config.objective.name
    if name in WITHOUT_COUPLING:
        allowed = "it does not follow the path from the noise of pairs: use flow_matching"
        raise UserError("config.objective.name", name, allowed)
    if config.train.validation_batches and not given.held_out:
        allowed = "no pairs are held out (config.data.pairs.held_out): leave it 0"
        raise UserError("config.train.validation_batches", config.train.validation_batches, allowed)


def _train(config: ConfigDict) -> None:
    for name in ("log_every", "sample_every", "checkpoint_every"):
        if config[name] % config.steps_per_dispatch:
            allowed = f"steps_per_dispatch = {config.steps_per_dispatch} must divide it"
            raise UserError(name, config[name], allowed)


def _guidance(config: ConfigDict) -> None:
    if config.weak_step is None and config.weak_workdir is not None:
        allowed = f"give the step of the weaker model's checkpoint in {config.weak_workdir}"
        raise UserError("weak_step", None, allowed)
    if config.weak_step is not None and config.scale == 1:
        allowed = "guidance by a weaker model takes another scale, such as 2"
        raise UserError("scale", config.scale, allowed)


def _solver(config: ConfigDict) -> None:
    for name in ("noise", "noise_scale"):
        if config[name] is not None and config.method not in STOCHASTIC:
            allowed = f"{config.method} adds no noise; choose one of: {', '.join(STOCHASTIC)}"
            raise UserError(name, config[name], allowed)
    if config.method in ("fitted", FLOW_MAP) and config.path is not None:
        allowed = f"the method {config.method} follows the path of training: leave it unset"
        raise UserError("path", config.path, allowed)
    if config.method == "fitted":
        if config.steps is None:
            raise UserError("steps", None, "give the number of calls of the fitted solver")
        if config.grid != "uniform":
            raise UserError("grid", config.grid, "a fitted solver has its own times: leave it")
        return
    solver_of(config).validate()
    if config.method in ADAPTIVE and config.grid != "uniform":
        allowed = "an adaptive method chooses its own steps: leave it uniform"
        raise UserError("grid", config.grid, allowed)
    if config.grid_options and not is_own(config.grid):
        grid = GRIDS[config.grid]
        _numbers("grid_options", f"the grid {config.grid}", config.grid_options, grid, given=2)
        with section("grid_options"):
            grid(1, optimal_transport(), **config.grid_options)


def _time(config: ConfigDict) -> None:
    """Raise UserError unless the distribution of t takes these options."""
    if not config.time_options or is_own(config.time):
        return
    time = (TIMES | {"importance": uniform_log_snr})[config.time]
    what = f"the distribution {config.time}"
    _numbers("time_options", what, config.time_options, time, given=3)
    with section("time_options"):
        draw = lambda key: time(key, 2, optimal_transport(), **config.time_options)  # noqa: E731
        jax.eval_shape(draw, jax.random.key(0))


def minibatch_ot(config: ConfigDict) -> MinibatchOT:
    """Convert config.minibatch_ot to the class of the coupling."""
    return MinibatchOT(**config.minibatch_ot)


def _coupling(config: ConfigDict) -> None:
    """Raise UserError if minibatch OT does not fit the objective or the condition."""
    name, objective = config.objective.coupling, config.objective.name
    if name != MINIBATCH_OT:
        return
    if objective in WITHOUT_COUPLING:
        allowed = f"{objective} pairs no noise with data: leave it independent"
        raise UserError("coupling", name, allowed)
    if config.condition.low_resolution is not None:
        allowed = (
            "the noise would depend on the low-resolution image in training, but not in sampling: "
            "use independent"
        )
        raise UserError("coupling", name, allowed)


def _numbers(
    field: str, what: str, options: ConfigDict, part: Callable[..., Any] | None, given: int
) -> None:
    """Raise UserError unless a part of this package takes these options, which are numbers.

    Args:
        field: field of the options.
        what: the part in words.
        options: the options.
        part: the part; None: it takes no options.
        given: number of its arguments that are no options.
    """
    taken = {} if part is None else signature(part).parameters
    taken = {name: p.default for name, p in list(taken.items())[given:]}
    if not set(options) <= set(taken):
        allowed = f"{what} takes " + (", ".join(taken) or "no options")
        raise UserError(field, options.to_dict(), allowed)
    for name, value in options.items():
        wants_bool = isinstance(taken[name], bool)
        if not isinstance(value, int | float) or isinstance(value, bool) != wants_bool:
            allowed = "it takes True or False" if wants_bool else "it takes a number"
            raise UserError(f"{field}.{name}", value, allowed)


def map_options(config: ConfigDict) -> MapOptions:
    """Convert config.flow_map to the options of `map_objectives`."""
    return MapOptions(**config)


def _flow_map(config: ConfigDict) -> None:
    """Raise UserError unless the network, the objective and the labels fit a flow map, or none."""
    with section("config.flow_map"):
        map_options(config.flow_map).validate()
    objective, network = config.objective, config.network
    learns_map = objective.name in MAP_OBJECTIVES
    if learns_map and not network.two_times:
        allowed = f"{objective.name} learns a flow map between two times: turn it on"
        raise UserError("config.network.two_times", False, allowed)
    for field in ("time", "time_options"):
        value = plain(objective[field])
        if learns_map and value not in ("uniform", {}):
            allowed = f"{objective.name} has the times of config.flow_map: leave it as it is"
            raise UserError(f"config.objective.{field}", value, allowed)
    if learns_map and config.flow_map.guidance != 1:
        has_both = config.condition.labels and config.condition.label_dropout > 0
        if not has_both:
            allowed = "it needs config.condition.labels, some of them dropped: leave it 1"
            raise UserError("config.flow_map.guidance", config.flow_map.guidance, allowed)
    if network.two_times:
        if not learns_map and not is_own(objective.name):
            allowed = f"{objective.name} learns no flow map: leave it off"
            raise UserError("config.network.two_times", True, allowed)
        if objective.predicts != "velocity":
            allowed = "a flow map is made of velocities: use velocity"
            raise UserError("config.objective.predicts", objective.predicts, allowed)
        if network.time_input != "t":
            allowed = "a network with two times takes them as they are: use t"
            raise UserError("config.network.time_input", network.time_input, allowed)


def check_flow_map(config: ConfigDict) -> None:
    """Raise UserError unless the model has a flow map for samples with this guidance."""
    if not config.network.two_times:
        allowed = "the model has no flow map: use mean_flow or alpha_flow, or another method"
        raise UserError("config.solver.method", FLOW_MAP, allowed)
    if config.guidance.scale != 1:
        allowed = (
            "a flow map has the guidance of its training, config.flow_map.guidance: leave it 1"
        )
        raise UserError("config.guidance.scale", config.guidance.scale, allowed)


def _likelihoods(config: ConfigDict) -> None:
    for k in config.dequantisations:
        likelihood.validate_probes(k, config.divergence, config.probes, config.probe_kind)


def _scores(config: ConfigDict) -> None:
    for name in config.scores:
        if (config.extractor, name) == ("pixels", "inception_score"):
            raise UserError("scores", name, "pixels have no class scores: leave it out")
        if config.generated is not None and config.generated < SCORES[name].least:
            allowed = f"{name} takes {SCORES[name].least} samples or more"
            raise UserError("generated", config.generated, allowed)
    if config.reference is not None and not Path(config.reference).expanduser().is_file():
        raise UserError("reference", config.reference, "there is no such file")


def _fit_solver(config: ConfigDict) -> None:
    """Raise UserError unless noises are left to fit a solver to."""
    others = config.held_out + config.held_out // 2
    if config.noises <= others:
        allowed = f"held_out = {config.held_out} and half as many are no part of the fit: give more"
        raise UserError("noises", config.noises, f"{allowed} than {others}")
