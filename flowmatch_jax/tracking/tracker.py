"""The tracker of a run: a function that its numbers and pictures are passed to, such as wandb's.

A tracker is created by a function (workdir, config) -> track, which config.train.tracker names.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.own import blamed, resolve

logger = logging.getLogger(__name__)

FIELD = "config.train.tracker"

# (step, numbers by name, pictures by name: uint8 [H, W] or [H, W, 3])
Track = Callable[[int, dict[str, float], dict[str, np.ndarray]], None]
# (folder of the run, its config as nested dicts) -> Track
MakeTracker = Callable[[Path, dict[str, Any]], Track]


def wandb(workdir: Path, config: dict[str, Any]) -> Track:
    """Create a tracker that logs to Weights & Biases.

    The id of its run is kept in wandb/run_id of the workdir, so that later starts go on with it.
    wandb's own environment variables, such as WANDB_PROJECT and WANDB_MODE, set everything else.
    """
    import wandb

    kept = workdir / "wandb" / "run_id"
    run = wandb.init(
        dir=workdir,
        id=kept.read_text() if kept.exists() else None,
        resume="allow",
        name=workdir.name,
        config=config,
        reinit="finish_previous",
    )
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, run.id)
    # wandb drops what is logged out of order, unless the step is a number like the others.
    run.define_metric("*", step_metric="step")

    def track(step: int, numbers: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        shown = {name: wandb.Image(pixels) for name, pixels in pictures.items()}
        run.log({"step": step, **numbers, **shown})

    return track


TRACKERS: dict[str, MakeTracker] = {"wandb": wandb}


def find_tracker(name: str | None) -> MakeTracker | None:
    """Return the function that creates the tracker of this name; None for no tracker.

    Args:
        name: a name in TRACKERS, or module:function.

    Raises:
        UserError: the function does not exist, or wandb is not installed.
    """
    if name is None:
        return None
    if name in TRACKERS and not _is_installed(name):
        raise UserError(FIELD, name, f"it is not installed: pip install {name}, or leave it unset")
    return resolve(FIELD, name, TRACKERS)


def _is_installed(package: str) -> bool:
    """Test whether a package is installed; a folder of its name, such as wandb's own, is not."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


class Tracker:
    """The tracker of a run, created when it is first called; after an exception it is off.

    Args:
        name: config.train.tracker; None: calls do nothing.
        workdir: folder of the run.
        config: its config as nested dicts.

    Raises:
        UserError: as `find_tracker`.
    """

    def __init__(self, name: str | None, workdir: Path, config: Mapping[str, Any]) -> None:
        self._name, self._given = name, (workdir, dict(config))
        self._make = find_tracker(name)
        self._track: Track | None = None

    def __call__(
        self, step: int, numbers: dict[str, float], pictures: dict[str, np.ndarray]
    ) -> None:
        """Pass numbers and pictures of a step to the tracker, unless it has failed."""
        if self._make is None:
            return
        try:
            with blamed(FIELD, self._name):
                if self._track is None:
                    self._track = self._make(*self._given)
                self._track(step, numbers, pictures)
        except Exception as error:
            is_told = isinstance(error, UserError)
            told = error if is_told else f"{FIELD}: {self._name} raised {error!r}"
            logger.warning("%s; it is switched off", " ".join(str(told).split()))
            self._make = None
