"""Construction of an experiment's components from its configuration.

Other modules take plain arguments; this one checks the configuration and derives them from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowmatch_jax import objectives, predictions
from flowmatch_jax.arrays import Apply, Array, Field, Inputs, Params
from flowmatch_jax.config.rules import data_options, solver_of, validate
from flowmatch_jax.couplings import COUPLINGS
from flowmatch_jax.data import sets
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.dataset import Dataset, RecordedDataset
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.extractors import load_extractor
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.objectives import OBJECTIVES, Objective, Time
from flowmatch_jax.paths import PATHS, GaussianPath, log_snr
from flowmatch_jax.predictions import vector_field
from flowmatch_jax.runtime.errors import UserError, one_of, section
from flowmatch_jax.runtime.mesh import make_mesh
from flowmatch_jax.sampling import ancestral, piecewise
from flowmatch_jax.sampling.guidance import Guidance, stretches
from flowmatch_jax.solvers import Solution, Solver, counted, integrate
from flowmatch_jax.times import GRIDS, TIMES

COMPUTING_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
SPLITS = ("train", "test")
WITHOUT_FIELD = {"regression": "data", "sr3": "noise"}  # objective -> prediction of its network


@dataclass(frozen=True)
class Experiment:
    """The components that training and evaluation use.

    Attributes:
        config: the configuration.
        train_data, test_data: the training and test split.
        path: the conditional path.
        objective: (apply, params, batch, key) -> (loss, metrics).
        network: the Flax module, float32.
        train_apply: the network as a function in the computing dtype of training.
        apply: the network as a function in float32, for evaluation.
        extractor: feature extractor of sample quality metrics, or None.
        mesh: the device mesh of training and evaluation.
        conditioning: the conditioning inputs of the network.
        guidance: classifier-free guidance of samples; likelihoods ignore it.
    """

    config: ConfigDict
    train_data: Dataset
    test_data: Dataset
    path: GaussianPath
    objective: Objective
    network: nn.Module
    train_apply: Apply
    apply: Apply
    extractor: Extractor | None
    mesh: Mesh
    conditioning: Conditioning
    guidance: Guidance

    def field(self, params: Params, **inputs: Array) -> Field:
        """Create the vector field with these parameters and conditioning inputs."""
        predicts = self.config.objective.predicts
        return vector_field(self.apply, params, self.path, predicts, **inputs)

    @property
    def is_flow(self) -> bool:
        """Whether the model has a vector field, and therefore likelihoods and a solver."""
        return self.config.objective.name not in WITHOUT_FIELD

    def generate(
        self,
        params: Params,
        x0: Array,
        key: Array,
        inputs: Inputs,
        solver: Solver | None = None,
        save_at: Sequence[float] | Array | None = None,
    ) -> Solution:
        """Generate samples from source noise x0 [B, ...] by the method's sampler.

        Args:
            params: the parameters.
            x0: the source noise.
            key: key of the noise in SR3's steps; unused by other methods.
            inputs: conditioning inputs of the samples.
            solver: solver of a flow; None: the config's.
            save_at: times of a flow's trajectory, as in `solvers.integrate`.
        """
        name = self.config.objective.name
        if name == "regression":
            x = predictions.point_estimate(self.apply, params, x0.shape, **inputs)
            return counted(x, 1)
        if name == "sr3":
            predict = lambda a, x: self.apply(params, a, x, **inputs)  # noqa: E731
            levels = ancestral.noise_levels(self.path, self.config.sr3.steps)
            return ancestral.sample(predict, key, x0, levels)
        how = (0.0, self.path.t_end, solver or self.solver(), save_at)
        if self.guidance:
            fields = stretches(partial(self.field, params), inputs, self.guidance)
            return piecewise.follow(fields, x0, *how)
        return integrate(self.field(params, **inputs), x0, *how)

    def solver(self) -> Solver:
        """Return the configuration's solver, with its time grid from t = 0 to the path's end."""
        solver = solver_of(self.config.solver)
        if solver.steps is None:
            return solver
        grid = GRIDS[self.config.solver.grid]
        return replace(solver, steps=None, grid=grid(solver.steps, self.path))

    def objective_at(self, t: Array) -> Objective | None:
        """Return the objective with all times equal to t []; None if it has no times."""
        if self.config.objective.name not in OBJECTIVES:
            return None
        return _regression(self.config.objective, self.path, lambda key, n, path: jnp.full(n, t))

    def init_params(self, key: Array) -> Params:
        """Initialise parameters, float32."""
        batch = jax.tree.map(jnp.asarray, self.train_data.zeros(1))
        x = batch["x"].astype(jnp.float32)
        inputs = self.conditioning.inputs(batch)
        return self.network.init(key, jnp.zeros(1), x, **inputs)["params"]


def build(config: ConfigDict, recorded: dict[str, Any] | None = None) -> Experiment:
    """Check the whole config and build the experiment.

    Args:
        config: the configuration.
        recorded: the facts of the "train" and the "test" split, as `Dataset.facts` returns them.
            These datasets are opened when their items are needed; without them, now.

    Raises:
        UserError: a field has an invalid value; the error has its full path.
    """
    validate(config)
    with section("config.mesh"):
        mesh = make_mesh(config.mesh.fsdp)
    train_data, test_data = (_dataset(config.data, split, recorded) for split in SPLITS)
    if config.data.flip and not train_data.is_image:
        allowed = f"{train_data.name} is a set of points: leave it off"
        raise UserError("config.data.flip", True, allowed)
    path = _path(config.path)
    conditioning = _conditioning(config.condition, train_data)
    _check_classes(config.evaluate, conditioning, train_data)
    network, clock = _network(config.network, train_data, conditioning), _clock(config, path)
    return Experiment(
        config=config,
        train_data=train_data,
        test_data=test_data,
        path=path,
        objective=_objective(config, path),
        network=network,
        train_apply=pure_apply(network.clone(dtype=COMPUTING_DTYPES[config.network.dtype]), clock),
        apply=pure_apply(network, clock),
        extractor=_extractor(config.evaluate, train_data),
        mesh=mesh,
        conditioning=conditioning,
        guidance=_guidance(config, conditioning),
    )


def _dataset(
    config: ConfigDict, split: str, recorded: dict[str, Any] | None
) -> Dataset | RecordedDataset:
    """A split of the dataset; opened later where a run has recorded what it is."""
    facts = (recorded or {}).get(split)
    if facts is None:
        return open_dataset(config, split)
    return RecordedDataset(facts, lambda: open_dataset(config, split))


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """Open the "train" or "test" split of the dataset that config.data names."""
    with section("config.data"):
        return sets.open_dataset(data_options(config), split)


def _extractor(config: ConfigDict, data: Dataset) -> Extractor | None:
    if config.extractor is None:
        return None
    with section("config.evaluate"):
        if not data.is_image:
            allowed = f"{data.name} is a set of points: leave it unset"
            raise UserError("extractor", config.extractor, allowed)
        return load_extractor(config.extractor, data.shape, data.levels, config.weights_file)


def _conditioning(config: ConfigDict, data: Dataset) -> Conditioning:
    conditioning = Conditioning(**config, levels=data.levels)
    with section("config.condition"):
        conditioning.validate(data.shape, data.num_classes)
    return conditioning


def _guidance(config: ConfigDict, conditioning: Conditioning) -> Guidance:
    guidance = Guidance(config.guidance.scale, tuple(config.guidance.interval))
    with section("config.guidance"):
        guidance.validate(conditioning.labels, conditioning.label_dropout)
        if guidance and config.objective.name in WITHOUT_FIELD:
            allowed = f"{config.objective.name} has no vector field to guide: leave it 1"
            raise UserError("scale", guidance.scale, allowed)
    return guidance


def _check_classes(config: ConfigDict, conditioning: Conditioning, data: Dataset) -> None:
    """Raise UserError unless samples of config.evaluate.classes can be drawn."""
    if not config.classes:
        return
    with section("config.evaluate"):
        if not conditioning.labels:
            allowed = "the model is given no labels (config.condition.labels): leave it empty"
            raise UserError("classes", config.classes, allowed)
        if conditioning.low_resolution is not None:
            allowed = "a sample has the class of its low resolution: leave it empty"
            raise UserError("classes", config.classes, allowed)
        if len(config.classes) > config.samples:
            allowed = f"the grid has samples = {config.samples} images: give as many at most"
            raise UserError("classes", config.classes, allowed)
        for label in config.classes:
            if label not in range(data.num_classes):
                allowed = f"the labels of {data.name} are 0 to {data.num_classes - 1}"
                raise UserError("classes", label, allowed)


def _path(config: ConfigDict) -> GaussianPath:
    with section(f"config.path.{config.name}"):
        return PATHS[config.name](**config[config.name])


def _objective(config: ConfigDict, path: GaussianPath) -> Objective:
    fields = config.objective
    with section("config.objective"):
        if fields.time == "importance" and fields.name != "scoreflow":
            allowed = "scoreflow alone has a weight to draw t by: use uniform or skewed"
            raise UserError("time", "importance", allowed)
        if fields.name in WITHOUT_FIELD:
            return _without_field(config, path)
        predictions.validate(fields.predicts, path)
    if fields.name == "maximum_likelihood":
        if config.network.name == "unet" and config.network.unet.dropout > 0:
            allowed = "maximum likelihood solves through one field, without dropout: set it to 0"
            raise UserError("config.network.unet.dropout", config.network.unet.dropout, allowed)
        options = config.maximum_likelihood
        trace = {"divergence": options.divergence, "probes": options.probes}
        return objectives.maximum_likelihood(path, fields.predicts, solver_of(options), **trace)
    with section("config.objective"):
        if fields.time == "importance":
            coupling = COUPLINGS[fields.coupling]
            return objectives.scoreflow_by_importance(path, fields.predicts, coupling)
        return _regression(fields, path, TIMES[fields.time])


def _without_field(config: ConfigDict, path: GaussianPath) -> Objective:
    name = config.objective.name
    one_of("predicts", config.objective.predicts, [WITHOUT_FIELD[name]])
    if name == "sr3":
        if config.path.name != "vp":
            raise UserError("name", name, "its noise levels are those of path vp: use that")
        return objectives.sr3(ancestral.noise_levels(path, config.sr3.levels))
    if config.condition.low_resolution is None:
        allowed = "it is a function of the low resolution: set config.condition.low_resolution"
        raise UserError("name", name, allowed)
    return objectives.regression


def _regression(fields: ConfigDict, path: GaussianPath, time: Time) -> Objective:
    return OBJECTIVES[fields.name](path, fields.predicts, COUPLINGS[fields.coupling], time)


def _network(config: ConfigDict, data: Dataset, conditioning: Conditioning) -> nn.Module:
    with section("config.network"):
        kind = "unet" if data.is_image else "mlp"
        if config.name != kind:
            what = "images" if data.is_image else "points"
            raise UserError("name", config.name, f"{data.name} is a set of {what}: use {kind}")
        with section(kind):
            if kind == "mlp":
                return MLP(**config.mlp)
            channels = data.shape[-1]
            network = UNet(
                out_channels=channels,
                num_classes=data.num_classes if conditioning.labels else None,
                condition_channels=conditioning.condition_channels(channels),
                **config.unet,
            )
            network.validate(data.shape[:2])
            return network


def _clock(config: ConfigDict, path: GaussianPath) -> Callable[[Array], Array]:
    """Return the function from t, or SR3's noise level, to the network's time input."""
    if config.network.time_input == "t":
        return lambda t: t
    is_level = config.objective.name == "sr3"
    return predictions.log_snr_clock(ancestral.log_snr if is_level else partial(log_snr, path))
