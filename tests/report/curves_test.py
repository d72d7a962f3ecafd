import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import paths
from flowmatch_jax.config.identity import fitted_to
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.multistep import MULTISTEP
from flowmatch_jax.report import curves
from flowmatch_jax.runge_kutta import FIXED
from flowmatch_jax.sampling import fitted
from flowmatch_jax.sampling.linear import METHODS, of_method
from tests.cases import gaussian_velocity
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import exact_map, images, points

ONE = jnp.ones(())
NOWHERE = Path("no run")  # without fitted solvers


class CurvesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("euler", 10, 10), ("midpoint", 10, 5), ("rk4", 8, 2), ("rk4", 10, None)
    )
    def test_steps_that_make_so_many_calls(self, method, nfe, steps):
        self.assertEqual(curves.steps_for(method, nfe), steps)

    def test_losses_are_those_of_the_measurements(self):
        """Lines of evaluations have none, and a step may lack a validation loss."""
        workdir = Path(self.create_tempdir().full_path)
        lines = [
            {"step": 10, "loss": 2.0, "learning_rate": 0.1},
            {"step": 20, "loss": None, "validation_loss_raw": 1.0},
            {"step": 20, "evaluation/ema/fid": 3.0},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        rows = curves.losses(workdir)
        first = {"step": 10, "loss": 2.0, "validation_loss_raw": None}
        self.assertEqual(rows, [first, {"step": 20, "loss": None, "validation_loss_raw": 1.0}])
        self.assertEqual(curves.losses(workdir / "elsewhere"), [])

    def test_errors_in_closed_form(self):
        """dx/dt = a x: n steps of order p end in (1 + h + ... + h^p / p!)^n x_0, h = a / n."""
        a, rows = 0.5, curves.over_nfe(points(), ONE, NOWHERE)
        cells = [(row["method"], row["nfe"]) for row in rows]
        wanted = [(m, n) for n in (4, 8, 10) for m in METHODS if (m, n) != ("rk4", 10)]
        self.assertEqual(cells, wanted)  # ten calls are no whole number of rk4's steps
        noise = np.concatenate([draw_source(source_key(1, i), (8, 2)) for i in range(3)])[:20]

        def growth(method, nfe):
            steps = curves.steps_for(method, nfe)
            order = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
            return sum((a / steps) ** k / math.factorial(k) for k in range(order + 1)) ** steps

        for row in rows:
            self.assertNotIn("fd_pixels", row)
            if row["method"] in FIXED:
                error = growth(row["method"], row["nfe"]) - growth("midpoint", 200)
                expected, found = error**2 * np.mean(noise**2), row["mean_squared_error"]
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-10)
        for method in MULTISTEP:  # tests/multistep_test.py has their steps
            errors = [row["mean_squared_error"] for row in rows if row["method"] == method]
            self.assertTrue((np.diff(errors) < 0).all())
            self.assertLess(errors[-1], 1e-4)

    def test_fitted_solvers_of_the_run(self):
        """Only with the calls that one was fitted for."""
        workdir = Path(self.create_tempdir().full_path)
        experiment = points(figures__methods=("euler", "fitted"))
        solver = of_method("midpoint", np.linspace(0, 1, 5))
        file = fitted.solver_file(workdir, 8, experiment.guidance)
        fitted.write(file, solver, fitted_to(experiment.config))
        rows = curves.over_nfe(experiment, ONE, workdir)
        self.assertEqual([row["method"] for row in rows], ["euler", "euler", "fitted", "euler"])
        expected = curves.over_nfe(points(figures__methods=("midpoint",)), ONE, workdir)
        self.assertEqual(rows[2]["nfe"], expected[1]["nfe"])
        np.testing.assert_allclose(
            rows[2]["mean_squared_error"], expected[1]["mean_squared_error"], rtol=1e-4
        )

    def test_calls_of_a_flow_map(self):
        """The exact map of dx/dt = x / 2 has no error at any number of calls, unlike Euler's."""
        of_map = {"objective__name": "mean_flow", "network__two_times": True}
        experiment = points(apply=exact_map, figures__nfe=(1, 2, 4), **of_map)
        by_method, workdir = {}, Path(self.create_tempdir().full_path)
        for row in curves.over_nfe(experiment, ONE, workdir):
            by_method.setdefault(row["method"], {})[row["nfe"]] = row["mean_squared_error"]
        self.assertEqual(list(by_method["flow_map"]), [1, 2, 4])
        self.assertLess(max(by_method["flow_map"].values()), 1e-8)
        self.assertGreater(by_method["euler"][4], 1e-4)
        by_map = points(apply=exact_map, solver__method="flow_map", solver__steps=2, **of_map)
        t, x = curves.paths_of_samples(by_map, ONE, 6, 5)
        np.testing.assert_allclose(x, np.exp(0.5 * t)[:, None, None] * x[0], rtol=1e-4)

    def test_distance_of_images(self):
        rows = curves.over_nfe(images(figures__nfe=(4,)), ONE, NOWHERE)
        # The field is zero: all solvers give the noise itself, rounded as their programs do.
        self.assertLen({row["fd_pixels"] for row in rows}, 1)
        for row in rows:
            self.assertLess(row["mean_squared_error"], np.finfo(np.float32).eps ** 2)

    def test_over_training(self):
        rows = curves.over_training(images(20.0), [(10, ONE), (20, ONE / 10)])
        self.assertEqual([row["step"] for row in rows], [10, 20])
        nfe = make_sampler(images(20.0), 8)(ONE).nfe
        self.assertGreater(nfe, rows[1]["nfe"])
        self.assertAlmostEqual(rows[0]["nfe"], float(nfe), delta=6)  # a mean over batches
        self.assertGreater(rows[0]["fd_pixels"], rows[1]["fd_pixels"])  # further off
        (row,) = curves.over_training(points(), [(10, ONE)])
        self.assertEqual(set(row), {"step", "nfe", "straightness"})

    def test_straightness_in_closed_form(self):
        """Of dx/dt = a x, x_t = exp(at) x_0, and of the exact field of Gaussian data."""
        a, noise = 0.5, np.asarray(draw_source(source_key(1), (8, 2)))
        found = curves.make_straightness(points(a))(ONE)
        growth = a * (np.exp(2 * a) - 1) / 2 - (np.exp(a) - 1) ** 2  # integral of the square, chord
        np.testing.assert_allclose(found, growth * np.mean(noise**2), rtol=1e-2)

        path, std = paths.optimal_transport(), 0.3
        field = gaussian_velocity(path, 0.0, std)
        gaussian = points(apply=lambda params, t, x, **_: field(t, x))
        t = np.linspace(0, 1, 2001)
        scale = np.sqrt((std * t) ** 2 + (1 - (1 - 1e-5) * t) ** 2)  # x_t = scale x_0
        rate = (scale[-1] - scale[0]) ** 2
        spread = np.mean(np.diff(scale) ** 2) * 2000**2 - rate
        found = curves.make_straightness(gaussian)(ONE)
        np.testing.assert_allclose(found, spread * np.mean(noise**2), rtol=2e-2)

    def test_a_constant_velocity_is_straight(self):
        constant = points(apply=lambda params, t, x, **_: 0 * x + params)
        self.assertLess(curves.make_straightness(constant)(ONE), 1e-9)

    def test_paths_of_samples(self):
        t, x = curves.paths_of_samples(points(), ONE, 6, 5)
        np.testing.assert_allclose(t, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(x, np.exp(0.5 * t)[:, None, None] * x[0], rtol=1e-4)
        np.testing.assert_allclose(x[0], draw_source(source_key(1), (6, 2)), rtol=1e-6)

    def test_paths_of_samples_along_another_path(self):
        """They end where that path ends."""
        experiment = points(solver__path="vp", solver__method="ab2", solver__steps=20)
        t, x = curves.paths_of_samples(experiment, ONE, 6, 5)
        self.assertEqual((t[-1], x.shape), (1 - 1e-5, (5, 6, 2)))
        self.assertTrue(np.isfinite(x).all())

    def test_samples_at_few_calls_start_from_the_same_noise(self):
        nfe, x = curves.samples_at(points(), ONE, 6, (2, 4, 8))
        self.assertEqual(nfe, [2, 4, 8])
        end = make_sampler(points(), 6)(ONE).x
        errors = np.abs(x - np.asarray(end)).max(axis=(1, 2))
        self.assertTrue((np.diff(errors) < 0).all())
        self.assertLess(errors[-1], 0.01)


if __name__ == "__main__":
    absltest.main()
