"""Super-resolution of Google's emoji from 16 x 16 to 64 x 64 by flow matching with the OT path.

    python main.py --config=configs/emoji_sr16_64.py --config.data.folder.path=package/img/google/64

The folder is from `npm pack emoji-datasource-google@16.0.0`. Only one skin tone of each emoji is
used, because its variants would be in both splits. Any other folder of images can be used.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/folder_ot.py")
    config.data.flip = False
    config.data.folder.exclude = ("*1f3f[b-f]*",)
    config.condition.low_resolution = 16

    config.train.steps = 50_000
    config.train.keep_every = 10_000
    return config
