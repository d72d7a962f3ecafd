"""The fields of training, sampling and evaluation."""

from __future__ import annotations

from flowmatch_jax import solvers
from flowmatch_jax.config.checks import (
    all_among,
    among,
    among_or_own,
    counts,
    even_calls,
    least,
    own_options,
    some_among,
    tile_overlap,
    training_steps,
    zero_or_least,
)
from flowmatch_jax.config.field import Field, Of, Section, owned
from flowmatch_jax.divergence import DIVERGENCES, PROBES
from flowmatch_jax.metrics.features.extractors import EXTRACTORS
from flowmatch_jax.metrics.scores import SCORES
from flowmatch_jax.paths import PATHS
from flowmatch_jax.runtime.errors import positive, seed
from flowmatch_jax.sampling.linear import METHODS, OF_VELOCITY
from flowmatch_jax.sampling.stochastic import NOISE_LEVELS
from flowmatch_jax.solvers import FLOW_MAP, Solver
from flowmatch_jax.times import GRIDS

WEIGHTS = ("ema", "raw")
SOLVED = Of.SCORES | Of.FIGURES

MAXIMUM_LIKELIHOOD: Section = {
    "method": owned(Solver, "method", "As in config.solver.", of=Of.ROW),
    "rtol": owned(Solver, "rtol", "As in config.solver.", of=Of.ROW),
    "atol": owned(Solver, "atol", "As in config.solver.", of=Of.ROW),
    "steps": owned(Solver, "steps", "As in config.solver.", of=Of.ROW, kind=int),
    "max_steps": Field(256, "Maximum number of steps of adaptive methods.", least(1), Of.ROW),
    "adjoint": owned(
        Solver, "adjoint", "checkpointed | backsolve.", among(solvers.ADJOINTS), Of.ROW
    ),
    "divergence": Field("hutchinson", "hutchinson | exact.", among(DIVERGENCES), Of.ROW),
    "probes": Field(1, "Hutchinson probes.", least(1), Of.ROW),
}

OPTIMIZER: Section = {
    "learning_rate": Field(1e-4, "Peak learning rate.", of=Of.ROW),
    "schedule": Field("polynomial", "polynomial | cosine | constant.", of=Of.ROW),
    "warmup_steps": Field(0, "Steps of linear warm-up.", of=Of.ROW),
    "b1": Field(0.9, "Adam's decay of the first moment.", of=Of.ROW),
    "b2": Field(0.999, "Adam's decay of the second moment.", of=Of.ROW),
    "eps": Field(1e-8, "Added to the root of Adam's second moment.", of=Of.ROW),
    "weight_decay": Field(0.0, "Weight decay; above 0 the optimiser is AdamW.", of=Of.ROW),
    "clip_norm": Field(None, "Maximum gradient norm; unset: no clipping.", of=Of.ROW, kind=float),
    "ema_decay": Field(0.9999, "Decay of the moving average of the weights.", of=Of.ROW),
}

TRAIN: Section = {
    "steps": Field(100_000, "Training steps.", training_steps, Of.ROW),
    "batch_size": Field(256, "Batch size over all devices.", least(1), Of.RUN | Of.ROW),
    "accumulate": Field(1, "Gradient-accumulation micro-batches per batch.", least(1)),
    "steps_per_dispatch": Field(1, "Steps per call of the compiled program.", least(1)),
    "max_skipped": Field(
        10,
        "Consecutive non-finite updates that are skipped before the run rolls back to a "
        "checkpoint; the second time it stops.",
        least(1),
    ),
    "log_every": Field(100, "Steps between measurements.", least(1)),
    "validation_batches": Field(
        0,
        "Batches of the test split whose loss is measured every log_every steps, with each of "
        "config.evaluate.weights; 0: none.",
        least(0),
    ),
    "sample_every": Field(5_000, "Steps between grids of samples.", least(1)),
    "checkpoint_every": Field(5_000, "Steps between checkpoints.", least(1)),
    "keep_last": Field(2, "Number of newest checkpoints to keep.", least(1)),
    "keep_every": Field(None, "Also keep checkpoints at multiples of this.", least(1), kind=int),
    "tracker": Field(
        None,
        "Also gets numbers and pictures: wandb, or your own as module:function; unset: none.",
        among_or_own(("wandb",)),
        kind=str,
    ),
}

SOLVER: Section = {
    "method": owned(
        Solver,
        "method",
        "euler midpoint heun rk4 | of one call per step: ab2 ab3 abm2 dpmpp2m | adaptive: dopri5 "
        "tsit5 dopri8 bosh3 | stochastic: euler_maruyama sea shark | fitted | flow_map.",
        of=SOLVED,
    ),
    "rtol": owned(
        Solver, "rtol", "Relative tolerance of adaptive methods and likelihoods.", positive, SOLVED
    ),
    "atol": owned(
        Solver, "atol", "Absolute tolerance of adaptive methods and likelihoods.", positive, SOLVED
    ),
    "steps": owned(Solver, "steps", "Steps of fixed methods.", of=SOLVED, kind=int),
    "grid": Field(
        "uniform",
        "Time grid of fixed methods: uniform | edm | cosine | shift | sway, or your own: "
        "module:function.",
        among_or_own(GRIDS),
        SOLVED,
    ),
    "grid_options": Field(
        {},
        "Arguments of the grid: k of shift | s of sway | those of your own.",
        own_options,
        SOLVED,
    ),
    "path": Field(
        None,
        "Path along which samples are drawn: ot | vp | ve | cosine; unset: the one of training.",
        among(PATHS),
        SOLVED,
        str,
        omit_unset=True,
    ),
    "noise": Field(
        None,
        "Noise level g_t of stochastic methods: sigma (g^2 = sigma_t) | diffusion | sine | "
        "constant, or your own: module:function; unset: sigma.",
        among_or_own(NOISE_LEVELS),
        SOLVED,
        str,
        omit_unset=True,
    ),
    "noise_scale": Field(
        None,
        "Factor on the noise level; 0: the ODE; unset: 1.",
        least(0.0),
        SOLVED,
        float,
        omit_unset=True,
    ),
    "file": Field(
        None,
        "File of the fitted solver, for method fitted; unset: the run's, of --mode=fit_solver.",
        kind=str,
    ),
}

EVALUATE: Section = {
    "weights": Field(("ema",), "Any of: ema, raw.", some_among(WEIGHTS)),
    "seed": Field(1, "Seed of samples, dequantisation and probes.", seed, SOLVED),
    "batch_size": Field(256, "Batch size of likelihoods.", least(1), Of.SCORES),
    "images": Field(
        None,
        "Test images for likelihoods; unset: all; 0: no likelihoods.",
        zero_or_least(2),  # two, for a standard error
        Of.SCORES,
        int,
    ),
    "dequantisations": Field(
        (1,), "Values of K of the importance-weighted bound.", counts("K, such as (1,)"), Of.SCORES
    ),
    "divergence": Field("hutchinson", "hutchinson | exact.", among(DIVERGENCES), Of.SCORES),
    "probes": Field(2, "Hutchinson probes; K > 1 needs at least two.", least(1), Of.SCORES),
    "probe_kind": Field(
        "rademacher",
        "rademacher | gaussian | orthogonal (less noise by 2, 4, 8, ... probes; K = 1 only).",
        among(PROBES),
        Of.SCORES,
        before="rademacher",
    ),
    "exact_block": Field(
        1, "Derivatives of an exact divergence that are computed at once.", least(1)
    ),
    "classes": Field((), "Classes in the sample grid of a class-conditional model; empty: all."),
    "samples": Field(64, "Samples per grid and per batch.", least(1), Of.SCORES),
    "extractor": Field(
        None,
        "Feature extractor of sample quality metrics: pixels | efficientnet_lite0 | inception; "
        "unset: no sample quality metrics.",
        among(EXTRACTORS),
        SOLVED,
        str,
    ),
    "weights_file": Field(None, "pytorch-fid's .pth file, for inception.", kind=str),
    "scores": Field(
        (),
        f"Metrics besides the Fréchet distance, any of: {', '.join(SCORES)}.",
        all_among(SCORES),
        Of.SCORES,
    ),
    "reference": Field(
        None, "npz with mu and sigma; unset: the training images.", of=Of.SCORES, kind=str
    ),
    "generated": Field(
        None,
        "Samples for sample quality metrics; unset: as many as training images, at most 50,000.",
        least(2),
        Of.SCORES,
        int,
    ),
    "after_training": Field(True, "Evaluate the model when the training ends."),
}

FIT_SOLVER: Section = {
    "calls": Field(8, "Calls of the field by the fitted solver.", least(1)),
    "start": Field(
        "ab2",
        "Method that the fit begins with, on equal steps: " + " | ".join(OF_VELOCITY) + ".",
        among(OF_VELOCITY),
    ),
    "times_only": Field(
        False, "Fit the times of the method's steps alone, and keep its coefficients."
    ),
    "noises": Field(256, "Noises whose accurate solutions a solver is fitted to.", least(16)),
    "held_out": Field(
        64, "Noises among them that only measure the result; half as many choose it.", least(2)
    ),
    "steps": Field(160, "Steps of the fit.", least(1)),
    "batch_size": Field(16, "Noises per step, and solved accurately at once.", least(1)),
    "learning_rate": Field(1e-2, "Adam's learning rate at the first step.", positive),
}

PAIRS: Section = {
    "count": Field(
        None,
        "Pairs of noise and samples that --mode=generate_pairs writes; unset: as many as training "
        "items.",
        least(2),
        kind=int,
    ),
    "batch_size": Field(256, "Pairs that are solved and written at once.", least(1)),
    "seed": Field(0, "Seed of their noise and labels.", seed),
}

UPSAMPLE: Section = {
    "overlap": Field(0.25, "Overlap of tiles, as a fraction of their side.", tile_overlap),
}

FIGURES: Section = {
    "nfe": Field(
        (4, 8, 10, 20, 40, 60, 100),
        "Values of NFE of the curves over NFE.",
        counts("number of calls"),
        Of.FIGURES,
    ),
    "methods": Field(
        (*METHODS, "fitted", FLOW_MAP),
        "Fixed methods in the curves over NFE; fitted and flow_map: where the run has one.",
        some_among((*METHODS, "fitted", FLOW_MAP)),
        Of.FIGURES,
    ),
    "reference_nfe": Field(
        1000, "NFE of the solution that errors are measured against.", even_calls, Of.FIGURES
    ),
    "seeds": Field(256, "Samples whose errors are averaged.", least(1), Of.FIGURES),
    "generated": Field(5_000, "Samples for each Fréchet distance.", least(2), Of.FIGURES),
    "sample_nfe": Field((4, 8, 10, 20), "Values of NFE of sample grids.", even_calls, Of.FIGURES),
}
