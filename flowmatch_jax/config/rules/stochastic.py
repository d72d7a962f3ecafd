"""Whether a model has the score that stochastic samplers take."""

from __future__ import annotations

from ml_collections import ConfigDict

from flowmatch_jax.runge_kutta import STOCHASTIC
from flowmatch_jax.runtime.errors import UserError


def check_score(config: ConfigDict, method: str) -> None:
    """Raise UserError if a method is stochastic and the model's velocity does not give the score.

    It does where x_0 is Gaussian given x_1: the score is then -E[x_0 | x_t] / sigma_t. With another
    coupling this is not the score, and a velocity that follows no path gives no E[x_0 | x_t].
    """
    source, objective = config.source.name, config.objective
    if method not in STOCHASTIC:
        return
    if source is not None:
        reason = f"noise, and samples start from a dataset (config.source.name is {source})"
    elif objective.coupling != "independent":
        reason = f"noise that is independent of the data, and the coupling is {objective.coupling}"
    elif objective.name == "maximum_likelihood":
        reason = "a field that follows a path, and maximum_likelihood has none"
    else:
        return
    allowed = f"the score follows only from {reason}: use a method without noise, such as dopri5"
    raise UserError("config.solver.method", method, allowed)
