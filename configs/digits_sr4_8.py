"""Super-resolution of digits from 4 x 4 to 8 x 8 by flow matching with the OT path.

Training takes minutes on two CPU cores. The noise on the condition prevents memorisation of the
1,500 training images, which their low resolution would identify; it lowers the PSNR
(docs/results.md).
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/digits_ot.py")
    config.condition.low_resolution = 4
    config.condition.max_noise = 0.4
    config.network.unet.dropout = 0.1
    return config
