"""Flow matching with the OT path on Fashion-MNIST at 16 x 16 pixels: 671,665 parameters.

It uses a narrower version of the full-size experiment's network and, as in the paper, no gradient
clipping. It is meant for comparing methods without an accelerator.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/fashion_mnist_ot.py")
    config.data.size = 16

    config.network.unet.channels = 24
    config.network.unet.attention_sides = (4,)

    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = None

    config.train.steps = 3_000
    config.train.log_every = 50
    config.train.sample_every = 1_000
    config.train.checkpoint_every = 250
    config.train.keep_every = 1_000

    config.solver.rtol = config.solver.atol = 1e-3
    config.evaluate.weights = ("ema", "raw")
    config.evaluate.images = 256
    config.evaluate.dequantisations = (1, 10)
    config.evaluate.generated = 2_048
    config.figures.nfe = (4, 8, 20, 40)
    config.figures.reference_nfe = 200
    config.figures.seeds = 64
    config.figures.generated = 1_408
    return config
