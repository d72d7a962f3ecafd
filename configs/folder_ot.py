"""Flow matching with the OT path on a folder of images at 64 x 64 pixels: 23.0M parameters.

    python main.py --config=configs/folder_ot.py --config.data.folder.path=...

It is meant for a few thousand to a million images. The learning rate is constant after the warm-up,
so that training can stop at any time; flips and dropout reduce memorisation of small datasets.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "folder"
    config.data.size = 64
    config.data.flip = True
    config.path.name = "ot"

    config.network.unet.channels = 64
    config.network.unet.multipliers = (1, 2, 3, 4)
    config.network.unet.depth = 2
    config.network.unet.attention_sides = (16, 8)
    config.network.unet.head_channels = 32
    config.network.unet.dropout = 0.1

    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 1_000
    config.optimizer.clip_norm = 1.0

    config.train.steps = 200_000
    config.train.batch_size = 64
    config.train.sample_every = 2_500
    config.train.checkpoint_every = 2_500
    config.train.keep_every = 20_000

    config.evaluate.images = 1_000  # or all images of a smaller test split
    config.evaluate.batch_size = 64
    config.evaluate.extractor = "efficientnet_lite0"
    return config
