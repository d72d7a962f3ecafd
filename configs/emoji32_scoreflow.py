"""ScoreFlow, score matching with lambda = beta, on the VP path, on Google's emoji, 32 x 32."""

from ml_collections import ConfigDict

from configs import emoji32_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(emoji32_ot.get_config())
