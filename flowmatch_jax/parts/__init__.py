"""Functions that build each component of an experiment from its section of the configuration."""

from __future__ import annotations

from ml_collections import ConfigDict

from flowmatch_jax import objectives, predictions
from flowmatch_jax.config.rules import map_options, solver_of
from flowmatch_jax.couplings import COUPLINGS, Coupling, of_the_batch
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.dataset import Dataset, check_label
from flowmatch_jax.dequantisation import DEQUANTISATIONS, Dequantisation
from flowmatch_jax.interpolants import stochastic_interpolant
from flowmatch_jax.map_objectives import MAP_OBJECTIVES
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.extractors import load_extractor
from flowmatch_jax.objectives import OBJECTIVES, WITHOUT_COUPLING, WITHOUT_FIELD, Objective, Time
from flowmatch_jax.parts import own
from flowmatch_jax.paths import PATHS, GaussianPath
from flowmatch_jax.runtime.errors import UserError, one_of, section
from flowmatch_jax.runtime.own import blamed, is_own, resolve
from flowmatch_jax.sampling import ancestral
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.times import TIMES


def make_extractor(config: ConfigDict, data: Dataset) -> Extractor | None:
    """Load the feature extractor of sample quality metrics; None if there are no metrics."""
    if config.extractor is None:
        return None
    with section("config.evaluate"):
        if not data.is_image:
            allowed = f"{data.name} is a set of points: leave it unset"
            raise UserError("extractor", config.extractor, allowed)
        return load_extractor(config.extractor, data.shape, data.levels, config.weights_file)


def make_conditioning(config: ConfigDict, data: Dataset) -> Conditioning:
    """Create the conditioning of the network."""
    conditioning = Conditioning(**config, levels=data.levels)
    with section("config.condition"):
        conditioning.validate(data.shape, data.num_classes)
    return conditioning


def make_guidance(config: ConfigDict, conditioning: Conditioning) -> Guidance:
    """Create the guidance settings of samples."""
    fields = config.guidance
    guidance = Guidance(fields.scale, tuple(fields.interval), fields.weak_step is not None)
    with section("config.guidance"):
        guidance.validate(conditioning.labels, conditioning.label_dropout)
        if guidance and config.objective.name in WITHOUT_FIELD:
            allowed = f"{config.objective.name} has no vector field to guide: leave it 1"
            raise UserError("scale", guidance.scale, allowed)
    return guidance


def check_classes(config: ConfigDict, conditioning: Conditioning, data: Dataset) -> None:
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
            check_label("classes", label, data)


def make_path(config: ConfigDict) -> GaussianPath:
    """Create the conditional path."""
    if not is_own(config.name):
        with section(f"config.path.{config.name}"):
            return PATHS[config.name](**config[config.name])
    with section("config.path"):
        make = resolve("name", config.name, PATHS, config.options)
        with blamed("name", config.name):
            path = make()
        own.check_path("name", config.name, path)
        return path


def make_dequantisation(config: ConfigDict, path: GaussianPath, data: Dataset) -> Dequantisation:
    """Create the dequantisation of images, which may shorten the path; points have none."""
    name, objective = config.data.dequantisation, config.objective.name
    if name != "uniform" and not data.is_image:
        allowed = f"{data.name} is a set of points: leave it uniform"
        raise UserError("config.data.dequantisation", name, allowed)
    if name != "uniform" and objective in WITHOUT_COUPLING:
        allowed = f"{objective} does not follow the path to its noise: leave it uniform"
        raise UserError("config.data.dequantisation", name, allowed)
    return DEQUANTISATIONS[name](path, data.levels)


def make_objective(config: ConfigDict, path: GaussianPath) -> Objective:
    """Create the training objective."""
    fields = config.objective
    with section("config.objective"):
        if fields.time == "importance" and fields.name != "scoreflow":
            allowed = "only scoreflow has this weight: use likelihood, uniform or skewed"
            raise UserError("time", "importance", allowed)
        if fields.time == "likelihood" and fields.name != "flow_matching":
            allowed = "it is the weight of the velocity's error: only flow_matching takes it"
            raise UserError("time", "likelihood", allowed)
        if fields.name in WITHOUT_FIELD:
            return _without_field(config, path)
        predictions.validate(fields.predicts, path)
    if fields.name == "maximum_likelihood":
        if config.network.name == "unet" and config.network.unet.dropout > 0:
            allowed = "maximum likelihood needs a field without dropout: set it to 0"
            raise UserError("config.network.unet.dropout", config.network.unet.dropout, allowed)
        options = config.maximum_likelihood
        trace = {"divergence": options.divergence, "probes": options.probes}
        return objectives.maximum_likelihood(path, fields.predicts, solver_of(options), **trace)
    with section("config.objective"):
        if fields.name in MAP_OBJECTIVES:
            options, steps = map_options(config.flow_map), config.train.steps
            return MAP_OBJECTIVES[fields.name](path, options, make_coupling(fields), steps)
        if fields.time == "importance":
            coupling = make_coupling(fields)
            options = fields.time_options.to_dict()
            return objectives.scoreflow_by_importance(path, fields.predicts, coupling, **options)
        return make_matching(config, path, make_time(fields))


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


def make_coupling(fields: ConfigDict) -> Coupling:
    """Return the coupling of noise and data."""
    return resolve("coupling", fields.coupling, COUPLINGS, fields.coupling_options)


def make_time(fields: ConfigDict) -> Time:
    """Return the distribution of t in training."""
    return resolve("time", fields.time, TIMES, fields.time_options)


def make_matching(config: ConfigDict, path: GaussianPath, time: Time) -> Objective:
    """Create a regression objective on the path, with t drawn by ``time``."""
    fields = config.objective
    if config.source.noise:
        return stochastic_interpolant(path, config.source.noise, of_the_batch, time)
    make = resolve("name", fields.name, OBJECTIVES, fields.options)
    with blamed("name", fields.name):
        return make(path, fields.predicts, make_coupling(fields), time)
