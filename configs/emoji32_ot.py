"""Flow matching with the OT path on Google's emoji, 32 x 32: 38.3M parameters, for one GPU.

    python main.py --config=configs/emoji32_ot.py --config.data.folder.path=package/img/google/64

The folder is from `npm pack emoji-datasource-google@16.0.0`. Only one skin tone of each emoji is
used, because its variants would be in both splits. The network has DDPM's size for CIFAR-10.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/folder_ot.py")
    config.data.size = 32
    config.data.flip = False
    config.data.folder.exclude = ("*1f3f[b-f]*",)
    config.data.storage = "device"

    config.network.dtype = "bfloat16"
    config.network.unet.channels = 128
    config.network.unet.multipliers = (1, 2, 2, 2)
    config.network.unet.attention_sides = (16,)
    config.network.unet.dropout = 0.0

    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "polynomial"
    config.optimizer.clip_norm = None

    config.train.steps = 30_000
    config.train.batch_size = 128
    config.train.sample_every = 5_000
    config.train.keep_every = 5_000

    config.evaluate.weights = ("ema", "raw")
    config.evaluate.dequantisations = (1, 10)
    return config
