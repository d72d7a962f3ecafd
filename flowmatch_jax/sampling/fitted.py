"""Files of fitted solvers: bespoke non-stationary solvers (Shaul et al. 2024, 2403.01329).

`fit` makes them. It begins with a known method and minimises the error to accurate solutions of a
model, over the coefficients of `linear`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json, write_atomically
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.sampling.linear import Coefficients


def solver_file(workdir: Path, calls: int, guidance: Guidance, grid_of: str | None = None) -> Path:
    """Return the file of a run's fitted solver, or of a method's fitted grid."""
    kept = "" if grid_of is None else f"_{grid_of}"
    return workdir / "solvers" / f"{calls}_calls{kept}{guidance.label}.json"


def write(path: Path, coefficients: Coefficients, facts: dict[str, Any]) -> None:
    """Write a solver as JSON: "t", "a", the lower triangle of "b", and facts about its fit."""
    t, a, b = (np.asarray(c, np.float64) for c in coefficients)
    rows = [row[: i + 1].tolist() for i, row in enumerate(b)]
    record = facts | {"calls": len(t), "t": t.tolist(), "a": a.tolist(), "b": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def read(path: Path) -> tuple[Coefficients, dict[str, Any]]:
    """Read a solver that `write` wrote; returns the coefficients and the facts.

    Raises:
        UserError: the file is missing or is no fitted solver; its field is "file".
    """
    try:
        facts = read_json(path)
        t, a, rows = (facts.pop(name) for name in ("t", "a", "b"))
        n = facts.pop("calls")
        b = np.array([[*row, *[0.0] * (n - len(row))] for row in rows], np.float64)
        found = Coefficients(np.array(t, np.float64), np.array(a, np.float64), b)
        if (found.t.shape, found.a.shape, found.b.shape) != ((n,), (n,), (n, n)):
            raise ValueError("its coefficients have other shapes")
        return found, facts
    except OSError as error:
        allowed = f"it cannot be read ({error.strerror}); --mode=fit_solver writes it"
        raise UserError("file", str(path), allowed) from error
    except (Unreadable, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("file", str(path), f"it is no fitted solver: {error}") from error


def content_hash(coefficients: Coefficients) -> str:
    """Return the SHA-256 of a solver's coefficients, which identifies it wherever its file is."""
    arrays = (np.asarray(c, np.float64).tobytes() for c in coefficients)
    return hashlib.sha256(b"".join(arrays)).hexdigest()
