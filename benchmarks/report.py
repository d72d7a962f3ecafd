"""Write BENCHMARKS.md from the records in benchmarks/results, without measuring anything.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.nets import NETS
from benchmarks.timing import RESULTS

PAGE = Path(__file__).parents[1] / "BENCHMARKS.md"
DEVICES = {"CPU": "", "GPU": ".gpu"}  # device -> suffix of its records' names
NOT_MEASURED = "not measured yet"

INTRODUCTION = """# Benchmarks

`python -m benchmarks.all` measures these figures and rewrites this page, on CPU and on a machine
with a GPU. The other libraries are in `requirements-bench.txt`. The alternatives run in turns,
each library in its own process. A figure is the median over the rounds, with the minimum and the
maximum. The ratio is computed in each round, as our figure over the one behind the colon: a
ratio above 1 means that ours is faster where the unit is a rate, and slower where the unit is
seconds."""

TITLES = {
    "train_step": "Training steps: loss, gradient, Adam, EMA",
    "sample": "Sampling: dopri5 at 1e-5",
    "likelihood": "Likelihood: one evaluation of the divergence",
    "evaluate": "Evaluation",
    "input": "Input",
    "dispatch": "Training steps with data: several steps per dispatch, images on the device",
    "cold_start": "Cold start",
    "growth": "Scaling: seconds per FLOP of a training step, relative to the last row of the sweep",
}


@dataclass(frozen=True)
class Demand:
    """A target for a median.

    Attributes:
        bound: the target.
        at_least: the median must be at least the bound; False: at most.
        of: the quantity, "ratio" or "ours".
    """

    bound: float
    at_least: bool = True
    of: str = "ratio"

    def __str__(self) -> str:
        what = "" if self.of == "ratio" else "ours "
        return f"{what}{'>=' if self.at_least else '<='} {self.bound:g}"

    def met(self, row: dict[str, Any]) -> bool:
        median = row[self.of]["median"]
        return median >= self.bound if self.at_least else median <= self.bound


_CIFAR10, _SMALL, _IMAGENET64 = (NETS[name].name for name in ("cifar10", "small", "imagenet64"))
# (benchmark, name of the row) -> device -> demand
DEMANDS = {
    ("train_step", f"{_CIFAR10}, float32: torch eager"): {"CPU": Demand(1.15)},
    ("train_step", f"{_CIFAR10}, float32: torch.compile"): {"CPU": Demand(1.0)},
    ("train_step", f"{_SMALL}, float32: torch eager"): {"CPU": Demand(1.0)},
    ("train_step", f"{_CIFAR10}, bfloat16: torch.compile"): {"GPU": Demand(1.5)},
    ("train_step", f"{_IMAGENET64}, bfloat16: torch.compile"): {"GPU": Demand(1.5)},
    ("train_step", f"{_IMAGENET64}, bfloat16: model FLOP/s"): {"GPU": Demand(0.45)},
    ("sample", f"{_SMALL}, dopri5: over NFE x network call"): dict.fromkeys(
        DEVICES, Demand(1.02, at_least=False)
    ),
    ("sample", f"{_SMALL}, dopri5: NFE, torchdiffeq"): dict.fromkeys(
        DEVICES, Demand(1.0, at_least=False)
    ),
    ("likelihood", f"{_SMALL}, Hutchinson, 1 probe(s): over one network call"): dict.fromkeys(
        DEVICES, Demand(2.0, at_least=False)
    ),
    ("cold_start", "first step of the README's command, warm cache: without a cache"): {
        "CPU": Demand(10.0, at_least=False, of="ours")
    },
}


def number(value: float) -> str:
    """Format a number with three digits and without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure(spread: dict[str, float] | None) -> str:
    """Format a spread as median (minimum - maximum)."""
    if spread is None:
        return ""
    median, low, high = (number(spread[key]) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} - {high})"


def demanded(demand: Demand | None, row: dict[str, Any] | None) -> str:
    """Format a demand and, if the row was measured, whether it is met."""
    if demand is None:
        return ""
    return f"{demand}" if row is None else f"{demand}: {'met' if demand.met(row) else 'missed'}"


def table(name: str, records: dict[str, dict[str, Any]]) -> str:
    """Format a benchmark's rows, ratio first; rows with a demand are included if not measured.

    Args:
        name: name of the benchmark.
        records: device -> record of the measured devices.
    """
    measured = {
        device: {row["name"]: row for row in record["rows"]} for device, record in records.items()
    }
    cases = {case: None for rows in measured.values() for case in rows}
    cases |= {case: None for benchmark, case in DEMANDS if benchmark == name}
    columns = [f"{device}: {what}" for device in DEVICES for what in ("ratio", "target", "figures")]
    lines = [("", *columns), ("---",) * (1 + len(columns))]
    for case in cases:
        cells = [case]
        for device in DEVICES:
            row = measured.get(device, {}).get(case)
            demand = DEMANDS.get((name, case), {}).get(device)
            ratio = figure(row["ratio"]) if row else ""
            cells += [ratio, demanded(demand, row), figures(row) if row else ""]
        lines.append(tuple(cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figures(row: dict[str, Any]) -> str:
    """Format both quantities with their unit and the note."""
    text = figure(row["ours"])
    if row["against"]:
        text += f" : {figure(row['against'])}"
    return f"{text} {row['unit']}" + (f"; {row['note']}" if row["note"] else "")


def machine_text(machine: dict[str, Any]) -> str:
    """Describe a machine in one line."""
    device = "" if machine["device"] == "cpu" else f"{machine['devices']} x {machine['device']}, "
    packages = ("python", "jax", "torch", "torchcfm", "torchdiffeq")
    versions = ", ".join(f"{name} {machine[name]}" for name in packages if machine[name])
    return f"{device}{machine['cpu']}, {machine['cpu_cores']} cores, {versions}"


def section(name: str, records: dict[str, dict[str, Any]]) -> str:
    """Format a benchmark: its commands, machines and table."""
    made = [
        f"{device}: `{records[device]['command']}`, {records[device]['rounds']} rounds, "
        f"{machine_text(records[device]['machine'])}."
        if device in records
        else f"{device}: {NOT_MEASURED}."
        for device in DEVICES
    ]
    lines = "\n".join(f"- {line}" for line in made)
    return f"## {TITLES[name]}\n\n{lines}\n\n{table(name, records)}"


def page(results: Path) -> str:
    """Compose the text of BENCHMARKS.md from a folder of records."""
    sections = [INTRODUCTION]
    for name in TITLES:
        paths = {device: results / f"{name}{end}.json" for device, end in DEVICES.items()}
        records = {d: json.loads(path.read_text()) for d, path in paths.items() if path.exists()}
        sections.append(section(name, records))
    return "\n\n".join(sections) + "\n"


def main() -> None:
    PAGE.write_text(page(RESULTS))


if __name__ == "__main__":
    main()
