"""Every field at its default; an experiment's file changes a few of them.

Fields are declared in flowmatch_jax/config, each with its meaning, range and default. Override one
on the command line by its full path: --config.train.steps=6000
"""

from flowmatch_jax.config.fields import default_config as get_config

__all__ = ["get_config"]
