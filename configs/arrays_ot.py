"""Flow matching with the OT path on images in NumPy files, with sides that 4 divides, up to 64.

    python main.py --config=configs/arrays_ot.py --config.data.arrays.train=...

The recipe is that of folders of images, without flips, which are valid only where a mirrored image
could be in the dataset. The U-Net has 10.2M parameters and three levels.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/folder_ot.py")
    config.data.name = "arrays"
    config.data.size = None
    config.data.flip = False

    config.network.unet.multipliers = (1, 2, 3)
    config.network.unet.attention_sides = ()  # beside the innermost level
    return config
