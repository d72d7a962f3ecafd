"""Loading and comparison of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.couplings import MINIBATCH_OT, PAIRED
from flowmatch_jax.evaluation.likelihoods import SCORES
from flowmatch_jax.runge_kutta import ADAPTIVE
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json
from flowmatch_jax.runtime.workdir import read_metrics
from flowmatch_jax.solvers import FLOW_MAP

# (objective, path) -> the paper's name for the method
METHODS = {
    ("ddpm", "vp"): "DDPM",
    ("score_matching", "vp"): "Score Matching",
    ("scoreflow", "vp"): "ScoreFlow",
    ("flow_matching", "vp"): "FM w/ Diffusion",
    ("flow_matching", "ot"): "FM w/ OT",
    ("flow_matching", "ve"): "FM w/ VE",
    ("sr3", "vp"): "SR3",
    ("mean_flow", "ot"): "MeanFlow",
    ("alpha_flow", "ot"): "alpha-Flow",
}
WITHOUT_PATH = {"maximum_likelihood": "CNF, maximum likelihood", "regression": "Regression"}
# coupling -> what the name of a method has in addition
COUPLINGS = {PAIRED: ", reflow", MINIBATCH_OT: ", minibatch OT"}
# Prefixes of the scores that a likelihood solve computes.
LIKELIHOODS = (*SCORES, "likelihood_nfe")


@dataclass(frozen=True)
class Run:
    """A run with its newest evaluations.

    Attributes:
        workdir: folder of the run.
        config: content of config.json.
        step: step of the evaluations.
        records: evaluations in evaluation/<step>.json, oldest first.
    """

    workdir: Path
    config: dict[str, Any]
    step: int
    records: list[dict[str, Any]]

    @property
    def method(self) -> str:
        """The method's name, see `method_name`."""
        return method_name(self.config)

    def milliseconds_a_step(self) -> float | None:
        """Return the median duration of a training step; None without measurements."""
        lines = read_metrics(self.workdir / "metrics.jsonl")
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        # The first interval includes compilation.
        rates = rates[1:] or rates
        return 1000 * self.config["train"]["batch_size"] / median(rates) if rates else None


def method_name(config: Mapping[str, Any]) -> str:
    """Return the field `method` or, if it is unset, the paper's name or objective and path."""
    if config.get("method") is not None:
        return config["method"]
    objective, path = config["objective"]["name"], config["path"]["name"]
    if objective in WITHOUT_PATH:
        return WITHOUT_PATH[objective]
    name = METHODS.get((objective, path), f"{objective}, {path}")
    return name + COUPLINGS.get(config["objective"].get("coupling"), "")


def load_run(workdir: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: the folder is not a run, or has no evaluation yet.
        Unreadable: the config or the evaluation is damaged.
    """
    if not (workdir / "config.json").exists():
        allowed = "there is no run (no config.json); give the folders of runs"
        raise UserError("--runs", str(workdir), allowed)
    files = {
        int(path.stem): path
        for path in (workdir / "evaluation").glob("*.json")
        if path.stem.isdigit()
    }
    if not files:
        allowed = (
            f"it has no evaluation; make one: --mode=evaluate --config=... --workdir={workdir}"
        )
        raise UserError("--runs", str(workdir), allowed)
    step = max(files)
    try:
        config, evaluations = read_json(workdir / "config.json"), read_json(files[step])
        return Run(workdir, config, step, list(evaluations["evaluations"]))
    except (KeyError, TypeError) as error:
        raise Unreadable(files[step], "it holds no evaluations") from error


def conditions(record: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that evaluations must share for their scores to be compared, by path.

    K and the Fréchet distance are handled separately, see `common_k` and `frechet_settings`. Each
    run has its own fitted solver, so that it is no condition which one it is.
    """
    solver = {k: v for k, v in record["solver"].items() if k not in ("sha256", "file")}
    # The solver of likelihoods is recorded if it is not that of samples.
    likelihood = {"method": record["solver"]["method"]} | record["likelihood"]
    del likelihood["dequantisations"]
    parts = {
        "data": record["data"],
        "condition": record.get("condition", {}),
        "guidance": record.get("guidance", {}),
        "solver": solver,
        "likelihood": likelihood,
        "samples": record["samples"],
        "evaluation": {"seed": record["evaluation_seed"], "dtype": record["dtype"]},
    }
    return {f"{a}.{b}": value for a, fields in parts.items() for b, value in fields.items()}


def has_likelihoods(wanted: dict[str, Any]) -> bool:
    """Test for valid likelihoods; earlier versions allowed fixed steps, which make wrong ones."""
    return wanted["likelihood.images"] > 0 and wanted["likelihood.method"] in ADAPTIVE


def alike(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the newest conditions under which all runs were evaluated, if possible by a solve.

    Raises:
        UserError: there are none; the error names the first field in which two runs differ.
    """
    first = runs[0]
    # Calls of a flow map have rows beside those of a solve, see `results_by_calls`.
    is_map = lambda record: record["solver"]["method"] == FLOW_MAP  # noqa: E731
    for record in sorted(reversed(first.records), key=is_map):
        wanted = conditions(record)
        if all(any(conditions(r) == wanted for r in run.records) for run in runs):
            return wanted
    wanted = conditions(first.records[-1])
    other = next(run for run in runs if all(conditions(r) != wanted for r in run.records))
    got = conditions(other.records[-1])
    # Either record may be older than a field.
    field = next(name for name in wanted | got if wanted.get(name) != got.get(name))
    raise _not_alike(other.workdir, field, got.get(field), first.workdir, wanted.get(field))


def results(run: Run, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Collect the results under these conditions: weights -> {name: value}."""
    found: dict[str, dict[str, Any]] = {}
    for record in run.records:
        if conditions(record) == wanted:
            for weights in record["results"]:
                found[weights] = found.get(weights, {}) | trusted(record, weights)
    return found


def results_by_calls(
    run: Run, wanted: dict[str, Any], frechet: dict[str, Any] | None
) -> dict[int, dict[str, dict[str, Any]]]:
    """Collect the results of samples by calls of a flow map: calls -> weights -> {name: value}.

    Their conditions are those wanted but for the solver. Likelihoods, which are those of the field,
    are left out.
    """
    of_all = partial(_without, prefixes=("solver.", "likelihood."))
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for record in run.records:
        got = conditions(record)
        by_map = record["solver"]["method"] == FLOW_MAP and got != wanted
        if by_map and of_all(got) == of_all(wanted) and record["frechet"] == frechet:
            results = {w: _without(trusted(record, w), LIKELIHOODS) for w in record["results"]}
            found.setdefault(record["solver"]["steps"], {}).update(results)
    return dict(sorted(found.items()))


def trusted(record: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Return the valid results of a kind of weights.

    Likelihoods whose solve failed or had fixed steps, the NFE of samples whose solve failed, and
    numbers that are not finite are dropped.
    """
    values = record["results"][weights]
    names = set(values)
    if not (values.get("converged", True) and has_likelihoods(conditions(record))):
        names &= _without(values, LIKELIHOODS).keys()
    if not values.get("samples_converged", True):
        names.discard("sample_nfe")
    is_number = lambda x: not isinstance(x, float) or math.isfinite(x)  # noqa: E731
    return {name: x for name, x in values.items() if name in names and is_number(x)}


def _without(values: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith(prefixes)}


def baselines(run: Run, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Collect the baselines' results under these conditions: label -> {name: value}."""
    found: dict[str, dict[str, Any]] = {}
    for record in run.records:
        if conditions(record) == wanted:
            found |= record.get("baselines", {})
    return found


def frechet_settings(runs: Iterable[Run], wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the Fréchet distances; None if no run has one.

    Raises:
        UserError: two runs have different settings.
    """
    known: dict[Path, dict[str, Any]] = {}
    for run in runs:
        for record in run.records:  # the newest is the one that `results` takes
            if conditions(record) == wanted and record["frechet"] is not None:
                known[run.workdir] = record["frechet"]
    for workdir, settings in known.items():
        first = next(iter(known))
        for field, value in settings.items():
            if value != known[first][field]:
                raise _not_alike(workdir, f"frechet.{field}", value, first, known[first][field])
    return next(iter(known.values()), None)


def ks(values: dict[str, Any]) -> list[int]:
    """Return the values of K of the bits/dim among the results, in order."""
    prefix = "bits_per_dim_k"
    names = [name for name in values if name.startswith(prefix)]
    return sorted(int(n.removeprefix(prefix)) for n in names if n.removeprefix(prefix).isdigit())


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in their seed, in the given order."""
    groups: list[tuple[Any, list[Run]]] = []
    for run in runs:
        key = (select(FIELDS, run.config, Of.ROW), run.step)
        for other, members in groups:
            if other == key and all(m.config["seed"] != run.config["seed"] for m in members):
                members.append(run)
                break
        else:
            groups.append((key, [run]))
    return [members for _, members in groups]


def _not_alike(a: Path, field: str, got: Any, b: Path, wanted: Any) -> UserError:
    if field == "data.name":
        allowed = f"it is a run on {got}, {b} is one on {wanted}; a report takes one dataset"
    else:
        allowed = (
            f"it was evaluated with {field} = {got!r}, {b} with {wanted!r}; evaluate both alike "
            "with --mode=evaluate"
        )
    return UserError("--runs", str(a), allowed)
