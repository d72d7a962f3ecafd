"""Comparison of time inputs of the network, for each method on digits with three seeds.

    python -m benchmarks.time_inputs --workdir=runs/time_inputs

Trains and evaluates each method with each time input and the method's own recipe. Finished runs are
skipped, and killed runs resume. ScoreFlow is also trained with uniform times. Several such commands
with different --methods can run at the same time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.timing import write
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.modes import run

# name -> time input of the network, and its scale before the sinusoids, whose frequencies are <= 1
INPUTS = {"t": ("t", 1.0), "1000 t": ("t", 1000.0), "log_snr": ("log_snr", 24.0)}
# name -> config, distribution of t in training
METHODS = {
    "ot": ("digits_ot", "uniform"),
    "vp": ("digits_vp", "uniform"),
    "ddpm": ("digits_ddpm", "uniform"),
    "score": ("digits_score", "uniform"),
    "scoreflow": ("digits_scoreflow", "importance"),
    "scoreflow_uniform": ("digits_scoreflow", "uniform"),
}
SEEDS = (0, 1, 2)
MEASURED = ("bits_per_dim_k1", "fd_pixels", "sample_nfe", "likelihood_nfe")


def trained(method: str, told: str, seed: int, folder: Path, train: bool) -> dict[str, Any] | None:
    """Return the results of a run, training it if necessary; None if ``train`` is False then."""
    file, time = METHODS[method]
    time_input, scale = INPUTS[told]
    overrides = {
        "seed": seed,
        "objective.time": time,
        "network.time_input": time_input,
        "network.unet.time_scale": scale,
    }
    config = load_config(
        f"configs/{file}.py", [f"--config.{field}={value}" for field, value in overrides.items()]
    )
    workdir = folder / f"{method}_{told.replace(' ', '')}_seed{seed}"
    path = workdir / "evaluation" / f"{config.train.steps}.json"
    if not path.exists():
        if not train:
            return None
        run("train", config, workdir)
    results = json.loads(path.read_text())["evaluations"][-1]["results"]["ema"]
    run_of = {"method": method, "input": told, "seed": seed}
    return run_of | {name: results[name] for name in MEASURED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/time_inputs"))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    flags = parser.parse_args()
    for seed in SEEDS:
        for method in flags.methods:
            for told in INPUTS:
                trained(method, told, seed, flags.workdir, train=True)
    rows = [
        trained(method, told, seed, flags.workdir, train=False)
        for method in METHODS
        for told in INPUTS
        for seed in SEEDS
    ]
    write("time_inputs", {"inputs": INPUTS, "runs": [row for row in rows if row is not None]})


if __name__ == "__main__":
    main()
