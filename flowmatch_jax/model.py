"""Trained models for scripts and notebooks, loaded from their workdir alone.

model = flowmatch_jax.load("runs/digits_ot")
images = model.sample(jax.random.key(0), 16)
bits = model.bits_per_dim(images)
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from flowmatch_jax import likelihood
from flowmatch_jax.arrays import Array, Inputs, Params, in_batches
from flowmatch_jax.autoguidance import with_weak_model
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.config.running import WEIGHTS
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.dataset import check_label
from flowmatch_jax.evaluation.samples import starts
from flowmatch_jax.evaluation.upsample import check_super_resolution, make_upsampler
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.parts.solver import likelihood_arguments
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError, at_least, one_of
from flowmatch_jax.runtime.messages import is_wanted
from flowmatch_jax.runtime.workdir import check_run, recorded_data, use_compilation_cache
from flowmatch_jax.solvers import Solver
from flowmatch_jax.training.weights import load_weights

logger = logging.getLogger(__name__)


def load(
    workdir: str | Path, weights: str = "ema", step: int | None = None, **fields: Any
) -> Model:
    """Load a trained model; its training set need not be available.

    Compiled programs are cached in the user's cache folder, unless JAX has another one set.

    Args:
        workdir: folder of the run.
        weights: "ema" (the moving average) or "raw".
        step: step of the checkpoint; None: the newest.
        **fields: fields of the config to change, with __ for dots: guidance__scale=2.0.

    Raises:
        UserError: the run or the checkpoint does not exist, or a field has an invalid value.
    """
    workdir = Path(workdir).expanduser()
    check_run(workdir)
    one_of("weights", weights, WEIGHTS)
    use_compilation_cache()
    logging.getLogger("absl").addFilter(is_wanted)  # Orbax's, of the folder that is only read
    config = experiment_config(str(workdir / "config.json"))
    config.mesh.fsdp = 1  # the number of devices here may be another than in training
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    experiment = with_weak_model(build(FrozenConfigDict(config), recorded_data(workdir), workdir))
    ((step, kinds),) = load_weights(experiment, workdir, (weights,), step=step).items()
    return Model(experiment, kinds[weights], step)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model. Its functions are compiled on first use and process data in batches.

    Images are integers [N, H, W, C] in [0, levels), uint8, as in the dataset; points are float32
    [N, D].

    Attributes:
        experiment: the experiment, with ``path``, ``apply`` and ``config`` among its components.
        params: the parameters.
        step: training step of the parameters.
        batch_size: number of samples or log-likelihoods per batch.
    """

    experiment: Experiment
    params: Params
    step: int
    batch_size: int = 64
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def config(self) -> ConfigDict:
        """The config that the model was trained with."""
        return self.experiment.config

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.experiment.train_data.shape

    @property
    def levels(self) -> int | None:
        """The number of grey levels of images; None for points."""
        return self.experiment.train_data.levels

    def field(self, t: Array | float, x: Array, **inputs: Array) -> Array:
        """Compute the vector field v_t(x) in model space, for t [] or [B] and x [B, ...]."""
        return self.experiment.field(self.params, **inputs)(t, x)

    def sample(
        self,
        key: Array,
        n: int,
        label: int | Array | None = None,
        solver: Solver | None = None,
        x0: Array | None = None,
    ) -> np.ndarray:
        """Draw n samples: images [n, H, W, C] or points [n, D].

        Args:
            key: key of the noise.
            n: number of samples.
            label: class of all samples, or of each [n], for class-conditional models.
            solver: solver, such as ``Solver("ab2", steps=8)``; None: the config's. If it has a
                path, samples are drawn along that.
            x0: noise, or items of the source, [n, ...] in model space to use instead of drawing it,
                for example for interpolations.

        Raises:
            UserError: a label is missing, or given to a model without classes; x0 is not of n.
            RunStopped: the solver failed.
        """
        at_least("n", n, 1)
        solver = None if solver is None else _hashable(solver)
        generate = self._jitted(("sample", solver), partial(self._generate, solver))
        labels = self._labels(n, label)
        noise_key, way_key = jax.random.split(key)
        x0 = self.noise(noise_key, n) if x0 is None else jnp.asarray(x0)
        if len(x0) != n:
            raise UserError("x0", f"{len(x0)} items", f"give one for each of the {n} samples")
        x, converged = self._in_batches(generate, x0, labels, way_key)
        if not converged:
            raise RunStopped("the solver failed: the field is not finite; try a fixed method")
        return x

    def noise(self, key: Array, n: int) -> Array:
        """Draw n points of the source, [n, ...], in model space; a smaller n gives a prefix.

        If samples start from a dataset, they are items of its test split, with replacement.
        """
        if self.experiment.source is not None:
            test = self.experiment.source.test
            numbers = jax.random.randint(jax.random.fold_in(key, 0), (n,), 0, len(test))
            return jnp.asarray(starts(test, np.asarray(numbers)))
        shape = (self.batch_size, *self.shape)
        keys = [jax.random.fold_in(key, i) for i in range(-(-n // self.batch_size))]
        std = self.experiment.path.source_std
        return jnp.concatenate([draw_source(k, shape, std) for k in keys])[:n]

    def _generate(
        self, solver: Solver | None, params: Params, x0: Array, key: Array, inputs: Inputs
    ) -> tuple[Array, Array]:
        solution = self.experiment.generate(params, x0, key, inputs, solver)
        x, levels = solution.x, self.levels
        return x if levels is None else quantise(x, levels).astype(jnp.uint8), solution.converged

    def _check_density(self) -> None:
        source = self.experiment.source
        if source is not None:
            allowed = "the density of the data that samples start from is not known"
            raise UserError("log_prob", f"samples from {source.train.name}", allowed)
        if not self.experiment.is_flow:
            name = self.config.objective.name
            raise UserError("config.objective.name", name, "the model has no density")

    def log_prob(
        self, x: Array, key: Array | None = None, label: int | Array | None = None, probes: int = 1
    ) -> np.ndarray:
        """Compute log p(x) in nats, [N], of samples: points, or images in model space [-1, 1].

        The solver of likelihoods is the config's if that is adaptive, otherwise dopri5.

        Args:
            x: [N, ...].
            key: key of the Hutchinson probes; None: the divergence is exact, with one derivative
                per dimension.
            label: as in `sample`.
            probes: number of Hutchinson probes.

        Raises:
            UserError: the model has no density, or one that is not known because samples start
                from a dataset; or as in `sample`.
        """
        self._check_density()

        path = self.experiment.path
        scale = self.experiment.dequantisation.scale(path)  # of samples, from the path's end

        def score(params: Params, x: Array, key: Array, inputs: Inputs) -> tuple[Array, Array]:
            result = likelihood.log_prob(
                self.experiment.field(params, **inputs),
                x / scale,
                key,
                divergence="exact" if exact else "hutchinson",
                probes=probes,
                **likelihood_arguments(self.config, path),
            )
            return result.log_prob - math.prod(self.shape) * math.log(scale), result.converged

        exact = key is None
        key = jax.random.key(0) if exact else key
        score = self._jitted(("log_prob", exact, probes), score)
        return self._scores(score, jnp.asarray(x), self._labels(len(x), label), key)

    def bits_per_dim(
        self,
        images: Array,
        key: Array | None = None,
        label: int | Array | None = None,
        dequantisations: int = 1,
    ) -> np.ndarray:
        """Compute bits/dim of images, [N]; K > 1 dequantisations give a tighter bound.

        Args:
            images: integers [N, H, W, C] in [0, levels).
            key: key of dequantisation noise and Hutchinson probes; None: key 0.
            label: as in `sample`.
            dequantisations: K.

        Raises:
            UserError: the model generates points, or `log_prob` raises it.
        """
        self._check_density()
        if self.levels is None:
            raise UserError("images", "points", "the model generates points: use log_prob")

        def score(params: Params, images: Array, key: Array, inputs: Inputs) -> tuple[Array, Array]:
            result = likelihood.image_bits_per_dim(
                self.experiment.field(params, **inputs),
                images,
                key,
                draw=self.experiment.dequantisation.likelihood,
                samples=dequantisations,
                **likelihood_arguments(self.config, self.experiment.path),
            )
            return result.bits_per_dim, result.converged

        key = jax.random.key(0) if key is None else key
        score = self._jitted(("bits_per_dim", dequantisations), score)
        labels = self._labels(len(images), label)
        return self._scores(score, jnp.asarray(images), labels, key)

    def upsample(self, image: np.ndarray) -> np.ndarray:
        """Enlarge an image [h, w, C], uint8 in [0, 255], with a super-resolution model."""
        check_super_resolution(self.experiment)
        if "upsample" not in self._compiled:
            self._compiled["upsample"] = make_upsampler(self.experiment)
        return self._compiled["upsample"](self.params, image)

    def _labels(self, n: int, label: int | Array | None) -> Array | None:
        """Return one label for each of n items; None for models without classes."""
        conditional = self.experiment.conditioning.labels
        if conditional != (label is not None):
            allowed = "needs a class for each sample" if conditional else "has no classes"
            raise UserError("label", label, f"this model {allowed}")
        if label is None:
            return None
        labels = np.asarray(label)
        for one in np.unique(labels).tolist():
            check_label("label", one, self.experiment.train_data)
        return jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (n,))

    def _jitted(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the compiled function, which is cached by key."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function)
        return self._compiled[key]

    def _in_batches(
        self, function: Callable[..., Any], x: Array, labels: Array | None, key: Array
    ) -> tuple[np.ndarray, bool]:
        return in_batches(partial(function, self.params), x, labels, key, self.batch_size)

    def _scores(self, function: Callable[..., Any], *given: Any) -> np.ndarray:
        scores, converged = self._in_batches(function, *given)
        if not converged:
            logger.warning("The solver of the likelihood failed: its results are invalid.")
        return scores


def _hashable(solver: Solver) -> Solver:
    """Return the solver with its grid as a tuple of numbers."""
    grid = None if solver.grid is None else tuple(np.asarray(solver.grid).tolist())
    return dataclasses.replace(solver, grid=grid)
