"""Densities in the plane: the paper's checkerboard and other common 2-D toy data.

Each has a sampler, its log-density in closed form (nats), and a function that returns a split. The
shapes are those of FFJORD's toy data; where their noise has no density in closed form, the noise is
radial instead. All lie roughly in [-4, 4]^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flowmatch_jax.data.dataset import Dataset

SIZES = {"train": 1_000_000, "test": 10_000}
SEEDS = {"train": 0, "test": 1}


def _points(
    name: str,
    split: str,
    sample: Callable[[np.random.RandomState, int], np.ndarray],
    log_density: Callable[[np.ndarray], np.ndarray],
) -> Dataset:
    x = sample(np.random.RandomState(SEEDS[split]), SIZES[split])
    return Dataset(name=name, version="1", split=split, x=x, log_density=log_density)


def checkerboard(split: str) -> Dataset:
    """Create the checkerboard, with log-density -log 32 on an area of 32."""
    return _points("checkerboard", split, sample_checkerboard, checkerboard_log_density)


def sample_checkerboard(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points, float32 [n, 2], uniform on the 8 dark squares of a 4 x 4 board, [-4, 4]^2."""
    column = rng.randint(0, 4, n)
    row = 2 * rng.randint(0, 2, n) + column % 2
    corner = 2 * np.stack([column, row], axis=1) - 4
    return (corner + rng.uniform(0, 2, (n, 2))).astype(np.float32)


def checkerboard_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2]; -inf outside the dark squares."""
    square = np.floor(np.asarray(x) / 2)
    dark = ((square >= -2) & (square < 2)).all(axis=1) & (square.sum(axis=1) % 2 == 0)
    return np.where(dark, -math.log(32), -np.inf)


GAUSSIANS = 8
GAUSSIAN_RADIUS, GAUSSIAN_STD = 2 * math.sqrt(2), math.sqrt(2) / 4


def eight_gaussians(split: str) -> Dataset:
    """Create eight isotropic Gaussians on a circle with equal weights."""
    return _points("eight_gaussians", split, sample_eight_gaussians, eight_gaussians_log_density)


def sample_eight_gaussians(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points, float32 [n, 2]."""
    centre = _turn(2 * np.pi * rng.randint(0, GAUSSIANS, n) / GAUSSIANS, [GAUSSIAN_RADIUS, 0.0])
    return (centre + GAUSSIAN_STD * rng.randn(n, 2)).astype(np.float32)


def eight_gaussians_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2]."""
    centres = _turn(2 * np.pi * np.arange(GAUSSIANS) / GAUSSIANS, [GAUSSIAN_RADIUS, 0.0])
    return _log_mean_exp([_log_normal(x, c, GAUSSIAN_STD).sum(axis=1) for c in centres])


MOON_RADIUS, MOON_STD = 2.0, 0.2
MOON_CENTRE = np.array([-1.0, -0.5])  # centre of the upper moon; the lower is its mirror image


def two_moons(split: str) -> Dataset:
    """Create two interleaved half circles."""
    return _points("two_moons", split, sample_two_moons, two_moons_log_density)


def sample_two_moons(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points: x = +-(c + r (cos a, sin a)), a ~ U[0, pi], r ~ |N(2, 0.2^2)|; float32."""
    r = np.abs(MOON_RADIUS + MOON_STD * rng.randn(n))
    upper = MOON_CENTRE + _polar(r, rng.uniform(0, np.pi, n))
    return (rng.choice([-1, 1], (n, 1)) * upper).astype(np.float32)


def two_moons_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2]: p(r) / (pi r) on the half plane of a moon."""

    def upper(x: np.ndarray) -> np.ndarray:
        dx = x - MOON_CENTRE
        log_p = _log_radial(_radius(dx), MOON_RADIUS, MOON_STD) - math.log(np.pi)
        return np.where(dx[:, 1] >= 0, log_p, -np.inf)

    return _log_mean_exp([upper(x), upper(-x)])


BLADES = 5
PINWHEEL_SCALE, PINWHEEL_STD, PINWHEEL_RATE = 2.0, np.array([0.3, 0.1]), 0.25


def pinwheel(split: str) -> Dataset:
    """Create five radially elongated Gaussians, rotated by an angle that grows with the radius."""
    return _points("pinwheel", split, sample_pinwheel, pinwheel_log_density)


def sample_pinwheel(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points: 2 R(2 pi k/5 + e^|f|/4) f, f ~ N((1, 0), diag(0.3, 0.1)^2); float32."""
    f = [1.0, 0.0] + PINWHEEL_STD * rng.randn(n, 2)
    angle = 2 * np.pi * rng.randint(0, BLADES, n) / BLADES + _twist(f)
    return (PINWHEEL_SCALE * _turn(angle, f)).astype(np.float32)


def pinwheel_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2].

    A rotation by a function of the radius preserves areas, so it does not change the density.
    """
    f = x / PINWHEEL_SCALE
    blades = [_turn(-2 * np.pi * k / BLADES - _twist(f), f) for k in range(BLADES)]
    logs = [_log_normal(f, np.array([1.0, 0.0]), PINWHEEL_STD).sum(axis=1) for f in blades]
    return _log_mean_exp(logs) - 2 * math.log(PINWHEEL_SCALE)


def _twist(f: np.ndarray) -> np.ndarray:
    return PINWHEEL_RATE * np.exp(_radius(f))


SPIRAL_START, SPIRAL_END = 0.5 * np.pi, 3.5 * np.pi  # angles along an arm
SPIRAL_PITCH, SPIRAL_STD = 1 / 3, 0.1


def spirals(split: str) -> Dataset:
    """Create two spiral arms, half a turn apart, with one and a half windings each."""
    return _points("spirals", split, sample_spirals, spirals_log_density)


def sample_spirals(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points, float32 [n, 2]: angle a or a + pi, radius |N(a/3, 0.1^2)|, a^2 uniform."""
    a = np.sqrt(rng.uniform(SPIRAL_START**2, SPIRAL_END**2, n))
    r = np.abs(SPIRAL_PITCH * a + SPIRAL_STD * rng.randn(n))
    return _polar(r, a + np.pi * rng.randint(0, 2, n)).astype(np.float32)


def spirals_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2].

    It is the sum of p(a) p(r | a) / r over all angles a in the point's direction.
    """
    r, angle = _radius(x), np.arctan2(x[:, 1], x[:, 0], dtype=np.float64)

    def winding(half_turns: int) -> np.ndarray:
        a = angle + np.pi * half_turns
        log_a = np.log(np.maximum(2 * a, 1e-9) / (SPIRAL_END**2 - SPIRAL_START**2))
        log_p = log_a + _log_radial(r, SPIRAL_PITCH * a, SPIRAL_STD)
        return np.where((a >= SPIRAL_START) & (a <= SPIRAL_END), log_p, -np.inf)

    # Each half turn belongs to one of the two arms, which have half of the points each.
    return np.logaddexp.reduce([winding(k) for k in range(6)]) - math.log(2)


RING_RADII, RING_STD = np.array([0.75, 1.5, 2.25, 3.0]), 0.08


def rings(split: str) -> Dataset:
    """Create four circles around the origin with equal weights."""
    return _points("rings", split, sample_rings, rings_log_density)


def sample_rings(rng: np.random.RandomState, n: int) -> np.ndarray:
    """Draw n points, float32 [n, 2], with uniform angle and radius |N(r_k, 0.08^2)|."""
    r = np.abs(rng.choice(RING_RADII, n) + RING_STD * rng.randn(n))
    return _polar(r, rng.uniform(0, 2 * np.pi, n)).astype(np.float32)


def rings_log_density(x: np.ndarray) -> np.ndarray:
    """Compute the log-density [N] of points [N, 2]: p(r) / (2 pi r)."""
    r = _radius(x)
    logs = [_log_radial(r, radius, RING_STD) for radius in RING_RADII]
    return _log_mean_exp(logs) - math.log(2 * np.pi)


def _radius(x: np.ndarray) -> np.ndarray:
    return np.hypot(x[:, 0], x[:, 1], dtype=np.float64)


def _polar(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Convert radii and angles [N] to points [N, 2]."""
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _turn(angle: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Rotate points, [N, 2] or one [2], by angles [N]: [N, 2]."""
    (x, y), cos, sin = np.moveaxis(np.asarray(x), -1, 0), np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _log_normal(x: np.ndarray, mean: np.ndarray, std: np.ndarray | float) -> np.ndarray:
    """Compute log N(x | mean, std^2) elementwise."""
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std * math.sqrt(2 * np.pi))


def _log_radial(r: np.ndarray, mean: np.ndarray | float, std: float) -> np.ndarray:
    """Compute log p(r) / r for r ~ |N(mean, std^2)|, in which negative radii are reflected."""
    log_p = np.logaddexp(_log_normal(r, mean, std), _log_normal(-r, mean, std))
    return log_p - np.log(np.maximum(r, 1e-9))  # finite at the origin, which has measure zero


def _log_mean_exp(logs: list[np.ndarray]) -> np.ndarray:
    return np.logaddexp.reduce(logs) - math.log(len(logs))


DENSITIES = {
    "checkerboard": checkerboard,
    "eight_gaussians": eight_gaussians,
    "two_moons": two_moons,
    "pinwheel": pinwheel,
    "spirals": spirals,
    "rings": rings,
}
