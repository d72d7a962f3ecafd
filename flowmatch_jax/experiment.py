"""Construction of an experiment's components from its configuration.

Other modules take plain arguments; this one checks the configuration and derives them from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowmatch_jax import flow_maps, networks, parts, predictions
from flowmatch_jax.arrays import Apply, Array, Field, FlowMap, Inputs, Params
from flowmatch_jax.config.rules import check_flow_map, validate
from flowmatch_jax.config.rules.stochastic import check_score
from flowmatch_jax.couplings import OF_THE_BATCH
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.dataset import Dataset, Splits
from flowmatch_jax.dequantisation import Dequantisation
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.objectives import Objective
from flowmatch_jax.parts import own
from flowmatch_jax.parts.data import make_data, make_pairs, make_source, with_starts
from flowmatch_jax.parts.network import in_training, make_clock, make_features, make_network
from flowmatch_jax.parts.solver import make_fitted, make_solver
from flowmatch_jax.paths import PATHS, GaussianPath
from flowmatch_jax.predictions import vector_field
from flowmatch_jax.runtime.errors import section
from flowmatch_jax.runtime.mesh import make_mesh
from flowmatch_jax.runtime.own import is_own
from flowmatch_jax.sampling import ancestral, flows
from flowmatch_jax.sampling.guidance import Fields, Guidance, GuidedParams, whole_field
from flowmatch_jax.sampling.linear import Coefficients
from flowmatch_jax.sampling.schedule import along
from flowmatch_jax.solvers import FLOW_MAP, Solution, Solver, counted


@dataclass(frozen=True)
class Experiment:
    """The components that training and evaluation use.

    Attributes:
        config: the configuration.
        train_data, test_data: the training and test split.
        path: the conditional path.
        objective: (apply, params, batch, key) -> (loss, metrics).
        network: the network (see `networks`), float32.
        train_apply: the network as a function in the computing dtype of training.
        apply: the network as a function in float32, for evaluation.
        extractor: feature extractor of sample quality metrics, or None.
        mesh: the device mesh of training and evaluation.
        conditioning: the conditioning inputs of the network.
        guidance: guidance of samples; likelihoods ignore it.
        dequantisation: how images are dequantised.
        features: (t, x_t) -> further input channels of the network, or None.
        weak: the experiment of the weaker model that guides samples, if there is one. Parameters
            are then `GuidedParams`.
        pairs: the pairs of noise and samples that it is trained on in place of the data.
        source: the dataset that samples start from; None: noise.
        fitted: the fitted solver of samples, if the config asks for one and a run is given.
    """

    config: ConfigDict
    train_data: Dataset
    test_data: Dataset
    path: GaussianPath
    objective: Objective
    network: networks.Network
    train_apply: Apply
    apply: Apply
    extractor: Extractor | None
    mesh: Mesh
    conditioning: Conditioning
    guidance: Guidance
    dequantisation: Dequantisation
    features: networks.Features | None = None
    weak: Experiment | None = None
    pairs: Splits | None = None
    source: Splits | None = None
    fitted: Coefficients | None = None

    @property
    def trained_on(self) -> Splits:
        """What training and its validation loss take batches from: the data, or pairs."""
        data = self.pairs or Splits(self.train_data, self.test_data)
        return with_starts(data, self.source) if self.config.source.paired else data

    @property
    def source_levels(self) -> int | None:
        """Grey levels of the images that samples start from; None for noise and points."""
        return None if self.source is None else self.source.train.levels

    def field(self, params: Params, **inputs: Array) -> Field:
        """Create the vector field, without guidance, with these parameters and inputs."""
        params = params.params if isinstance(params, GuidedParams) else params
        predicts = self.config.objective.predicts
        return vector_field(self.apply, params, self.path, predicts, **inputs)

    def flow_map(self, params: Params, **inputs: Array) -> FlowMap:
        """Create the flow map X(t, s, x) of a network with two times.

        Raises:
            UserError: the model has none, or its samples have guidance.
        """
        check_flow_map(self.config)
        u = predictions.average_velocity(self.apply, params, self.path, **inputs)
        return flow_maps.from_average_velocity(u)

    @property
    def is_flow(self) -> bool:
        """Whether the model has a vector field, and therefore a solver."""
        return self.config.objective.name not in parts.WITHOUT_FIELD

    @property
    def has_density(self) -> bool:
        """Whether the model has a density: it is a flow whose samples start from noise."""
        return self.is_flow and self.source is None

    @property
    def has_flow_map(self) -> bool:
        """Whether samples can be drawn by calls of a flow map, see `flow_map`."""
        return self.config.network.two_times and not self.guidance

    def generate(
        self,
        params: Params,
        x0: Array,
        key: Array,
        inputs: Inputs,
        solver: Solver | Coefficients | None = None,
        save_at: Sequence[float] | Array | None = None,
    ) -> Solution:
        """Generate samples from source noise x0 [B, ...] by the method's sampler.

        Args:
            params: the parameters.
            x0: the source noise.
            key: key of the noise in the steps of SR3 and of stochastic solvers; for these it may be
                a key for each sample, [B].
            inputs: conditioning inputs of the samples.
            solver: solver of a flow, which may be a fitted one; None: the config's. If it has a
                path, samples are drawn along that.
            save_at: times of a flow's trajectory, as in `solvers.integrate`, on the same path.
        """
        name = self.config.objective.name
        if name == "regression":
            x = predictions.point_estimate(self.apply, params, x0.shape, **inputs)
            return counted(x, 1)
        if name == "sr3":
            predict = lambda a, x: self.apply(params, a, x, **inputs)  # noqa: E731
            levels = ancestral.noise_levels(self.path, self.config.sr3.steps)
            return ancestral.sample(predict, key, x0, levels)
        solver = solver or self.solver(self.sampling_path)
        solution = self.follow(params, x0, key, inputs, solver, save_at)
        followed = solver.path if isinstance(solver, Solver) else None
        scale = self.dequantisation.scale(followed or self.path)
        return solution if scale == 1 else solution._replace(x=scale * solution.x)

    def follow(
        self,
        params: Params,
        x0: Array,
        key: Array,
        inputs: Inputs,
        solver: Solver | Coefficients | None = None,
        save_at: Sequence[float] | Array | None = None,
    ) -> Solution:
        """Follow the flow from source noise to the end of the path; arguments as in `generate`."""
        solver = solver or self.solver(self.sampling_path)
        if isinstance(solver, Solver):
            check_score(self.config, solver.method)
            if solver.method == FLOW_MAP:
                return flows.by_map(self.flow_map(params, **inputs), x0, self.path, solver, save_at)
        fields, path = self._fields(params), self.path
        return flows.sample(fields, x0, key, inputs, path, solver, self.guidance, save_at)

    def whole_field(self, params: Params, **inputs: Array) -> Field:
        """Create the vector field of samples, with guidance, as one function of all times."""
        return whole_field(self._fields(params), inputs, self.guidance)

    def _fields(self, params: Params) -> Fields:
        if self.weak is None:
            return Fields(partial(self.field, params))
        weak, path = self.weak, self.path
        weak_field = lambda **inputs: along(weak.field(params.weak, **inputs), weak.path, path)  # noqa: E731
        return Fields(partial(self.field, params), weak_field)

    @property
    def sampling_path(self) -> GaussianPath:
        """The path along which samples are drawn."""
        name = self.config.solver.path
        return self.path if name in (None, self.config.path.name) else PATHS[name]()

    def solver(self, path: GaussianPath | None = None) -> Solver | Coefficients:
        """Return the solver of samples on a path, with its time grid from 0 to the path's end.

        Args:
            path: the path; None: the one of training.
        """
        return self.fitted or make_solver(self.config, path or self.path)

    def init_params(self, key: Array) -> Params:
        """Initialise parameters, float32."""
        batch = jax.tree.map(jnp.asarray, self.train_data.zeros(1))
        x = batch["x"].astype(jnp.float32)
        inputs, t = self.conditioning.inputs(batch), jnp.zeros(1)
        if self.features is not None:
            inputs["condition"] = networks.with_features(
                self.features, t, x, inputs.get("condition")
            )
        return networks.init_params(self.network, key, t, x, **inputs)


def build(
    config: ConfigDict, recorded: dict[str, Any] | None = None, workdir: Path | None = None
) -> Experiment:
    """Check the whole config and build the experiment.

    Args:
        config: the configuration.
        recorded: the facts of the "train" and the "test" split, as `Dataset.facts` returns them,
            and those of the "source". They are opened when their items are needed, pairs never;
            without them, all are now.
        workdir: folder of the run, to draw samples by its fitted solver if the config asks for it.

    Raises:
        UserError: a field has an invalid value; the error has its full path.
    """
    validate(config)
    with section("config.mesh"):
        mesh = make_mesh(config.mesh.fsdp)
    data = make_data(config.data, recorded)
    train_data = data.train
    dequantisation = parts.make_dequantisation(config, parts.make_path(config.path), train_data)
    path = dequantisation.path
    conditioning = parts.make_conditioning(config.condition, train_data)
    parts.check_classes(config.evaluate, conditioning, train_data)
    network = make_network(config.network, train_data, conditioning)
    training = in_training(config.network, network)
    clock, features = make_clock(config, path), make_features(config, path, train_data)
    experiment = Experiment(
        config=config,
        train_data=train_data,
        test_data=data.test,
        path=path,
        objective=parts.make_objective(config, path),
        network=network,
        train_apply=networks.pure_apply(training, clock, features),
        apply=networks.pure_apply(network, clock, features),
        extractor=parts.make_extractor(config.evaluate, train_data),
        mesh=mesh,
        conditioning=conditioning,
        guidance=parts.make_guidance(config, conditioning),
        dequantisation=dequantisation,
        features=features,
        pairs=None if recorded else make_pairs(config, train_data),
        source=make_source(config, data, recorded),
        fitted=None if workdir is None else make_fitted(config, workdir),
    )
    if experiment.is_flow and config.solver.method != "fitted":
        experiment.solver(experiment.sampling_path)  # raises the errors of its grid and noise
    _check_own_parts(experiment)
    return experiment


def _check_own_parts(experiment: Experiment) -> None:
    """Call the user's own parts once; raises UserError if one does not return what it should."""
    config = experiment.config
    fields = config.objective
    stored = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((config.train.batch_size, *a.shape[1:]), a.dtype),
        experiment.train_data.zeros(1),
    )
    inputs = jax.eval_shape(experiment.conditioning.inputs, stored)
    x = jax.ShapeDtypeStruct(stored["x"].shape, jnp.float32)
    apply = experiment.train_apply
    if is_own(config.network.name):
        end = jax.ShapeDtypeStruct(x.shape[:1], x.dtype)
        given = inputs | ({"end": end} if config.network.two_times else {})
        with section("config.network"):
            own.check_network("name", config.network.name, experiment.init_params, apply, x, given)
    with section("config.objective"):
        if is_own(fields.coupling):
            own.check_coupling("coupling", fields.coupling, parts.make_coupling(fields), x)
        if is_own(fields.time):
            time = parts.make_time(fields)
            own.check_time("time", fields.time, time, x.shape[0], experiment.path)
        if is_own(fields.name):
            params = jax.eval_shape(experiment.init_params, jax.random.key(0))
            batch = {"x": x, **inputs} | ({"x0": x} if fields.coupling in OF_THE_BATCH else {})
            own.check_objective("name", fields.name, experiment.objective, apply, params, batch)
