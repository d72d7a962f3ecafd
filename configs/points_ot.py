"""Flow matching with the OT path on points in NumPy files, with the paper's 5 x 512 network.

    python main.py --config=configs/points_ot.py --config.data.arrays.train=...

The recipe is that of the 2-D densities. Points of the order of 1 in each coordinate suit it.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/checkerboard_ot.py")
    config.data.name = "arrays"
    return config
