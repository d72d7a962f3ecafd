"""Flow matching with the VP path ("FM w/ Diffusion") on Google's emoji, 32 x 32."""

from ml_collections import ConfigDict

from configs import emoji32_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(emoji32_ot.get_config())
