import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import fit_solver
from flowmatch_jax.parts.solver import make_fitted
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.sampling import fit, fitted
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.sampling.linear import METHODS, of_method
from flowmatch_jax.solvers import Solver
from tests.evaluation import experiments

ONE = jnp.ones(())
FIT = {
    "fit_solver__calls": 4,
    "fit_solver__noises": 400,
    "fit_solver__held_out": 100,
    "fit_solver__steps": 150,
    "fit_solver__batch_size": 40,
    "fit_solver__learning_rate": 1e-2,
    "evaluate__samples": 100,
}


def nonlinear(params, t, x, **_):
    return params * (jnp.cos(3 * x) - x * jnp.sin(3 * t)[:, None])


def model(**fields):
    return experiments.points(apply=nonlinear, **FIT | fields)


def using(file, **fields):
    """The experiment as it samples by a fitted solver."""
    fields = {"solver__method": "fitted", "solver__steps": 4, "solver__file": file} | fields
    experiment = model(**fields)
    return dataclasses.replace(experiment, fitted=make_fitted(experiment.config, Path("run")))


class FitSolverTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.workdir = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        fit_solver.fit_solver(model(), ONE, cls.workdir, {"step": 7})
        cls.file = cls.workdir / "solvers" / "4_calls.json"

    def test_file(self):
        record = json.loads(self.file.read_text())
        self.assertEqual((record["calls"], record["step"]), (4, 7))
        self.assertEqual(record["noises"], 100)
        known = record["best_known"]
        for mean in ("geometric_mean", "mean"):
            self.assertLess(record["squared_error"][mean], 0.3 * known["squared_error"][mean], mean)
        self.assertRegex(known["method"], f"^({'|'.join(METHODS)}), [a-z]+$")
        self.assertEqual([len(row) for row in record["b"]], [1, 2, 3, 4])

    def test_samples_are_closer_to_the_accurate_ones(self):
        """From noises that have no part in the fit, at the calls that are counted."""
        x0 = jax.random.normal(jax.random.key(9), (200, 2))
        draw = lambda e, solver=None: e.generate(ONE, x0, jax.random.key(0), {}, solver)  # noqa: E731
        accurate = draw(model(), fit_solver.ACCURATE)
        got, plain = draw(using(str(self.file))), draw(model(), Solver("midpoint", steps=2))
        self.assertEqual((got.nfe, plain.nfe), (4, 4))
        errors = [np.mean((solution.x - accurate.x) ** 2) for solution in (got, plain)]
        self.assertLess(errors[0], 0.3 * errors[1])

    def test_goes_on_where_it_was_stopped(self):
        workdir = Path(self.create_tempdir().full_path)
        stopped = mock.patch.object(fit_solver.StopNotice, "reached", lambda _, step: step == 25)
        with stopped, self.assertRaisesRegex(RunStopped, "the same command goes on"):
            fit_solver.fit_solver(model(), ONE, workdir, {"step": 7})
        solved = mock.patch.object(fit_solver, "draw_source", side_effect=AssertionError)
        with solved, self.assertLogs("flowmatch_jax", "INFO") as logs:
            fit_solver.fit_solver(model(), ONE, workdir, {"step": 7})
        self.assertIn("The fit goes on at step 25.", " ".join(logs.output))
        file = workdir / "solvers" / "4_calls.json"
        self.assertEqual(file.read_text(), self.file.read_text())
        self.assertEqual({p.name for p in file.parent.iterdir()}, {"pairs.npz", file.name})

    def test_pairs_that_are_damaged_or_of_another_step_are_made_again(self):
        experiment, pairs = model(), self.workdir / "solvers" / "pairs.npz"
        held = fit_solver.accurate_pairs(experiment, ONE, pairs, {"step": 1})
        other = fit_solver.accurate_pairs(experiment, 0.5 * ONE, pairs, {"step": 2})
        self.assertFalse(np.array_equal(held.x1, other.x1))
        pairs.write_bytes(pairs.read_bytes()[:100])
        with self.assertLogs("flowmatch_jax", "WARNING"):
            again = fit_solver.accurate_pairs(experiment, ONE, pairs, {"step": 1})
        np.testing.assert_array_equal(again.x1, held.x1)

    def test_solvers_of_others_are_refused(self):
        for fields, said in (
            ({"seed": 5}, "fitted to another run"),
            ({"guidance__interval": (0.2, 1.0)}, "fitted to another guidance"),
            ({"solver__steps": 5}, "config.solver.steps: got 5; the solver in .* has 4 calls"),
            ({"solver__file": "/nowhere"}, "config.solver.file: .*cannot be read"),
            ({"solver__file": None}, "got 'run/solvers/4_calls.json'; .*--mode=fit_solver"),
        ):
            with self.assertRaisesRegex(UserError, said):
                using(str(self.file), **fields)
        with self.assertRaisesRegex(UserError, "config.solver.steps: got None"):
            model(solver__method="fitted")

    def test_models_without_a_field_are_refused(self):
        with self.assertRaisesRegex(UserError, "regression.*no vector field"):
            fit_solver.fit_solver(experiments.regression(), ONE, self.workdir, {})

    def test_calls_that_are_no_whole_steps_are_refused(self):
        odd = model(fit_solver__start="midpoint", fit_solver__calls=5)
        with self.assertRaisesRegex(
            UserError, "config.fit_solver.calls: got 5; a step of midpoint"
        ):
            fit_solver.fit_solver(odd, ONE, self.workdir, {})

    def test_a_grid_alone(self):
        """The coefficients are the method's, and the error is not above that of its other grids."""
        workdir = Path(self.create_tempdir().full_path)
        shutil.copytree(self.workdir / "solvers", workdir / "solvers")  # the accurate solutions
        of_grid = model(fit_solver__start="midpoint", fit_solver__times_only=True)
        fit_solver.fit_solver(of_grid, ONE, workdir, {"step": 7})
        found, facts = fitted.read(workdir / "solvers" / "4_calls_midpoint.json")
        kept = of_method("midpoint", np.append(found.t[::2], 1.0))
        np.testing.assert_allclose(found.b, kept.b, atol=1e-6)
        known = facts["best_known"]
        self.assertLessEqual(
            facts["squared_error"]["geometric_mean"], known["squared_error"]["geometric_mean"]
        )
        self.assertStartsWith(known["method"], "midpoint, ")

    def test_the_run_s_solver_is_found(self):
        config = model(solver__method="fitted", solver__steps=4).config
        found, named = make_fitted(config, self.workdir), using(str(self.file)).solver()
        np.testing.assert_array_equal(found.b, named.b)
        self.assertIsNone(make_fitted(model().config, self.workdir))
        self.assertEqual(
            fit_solver.solver_file(Path("run"), 6, Guidance(2.5)).name, "6_calls_guidance2.5.json"
        )


class StoppedFitTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        self.file = self.workdir / "solvers" / "4_calls.partial"
        self.file.parent.mkdir()
        pairs = fit.Pairs(np.zeros((400, 2)), np.zeros((400, 2)), {})
        known = ("euler, uniform", of_method("euler", np.linspace(0, 1, 5)), 0.5)
        for module, name, result in (
            (fit_solver, "accurate_pairs", pairs),
            (fit, "best_known", known),
            (fit_solver.StopNotice, "reached", True),
        ):
            self.enter_context(mock.patch.object(module, name, return_value=result))
        self.enter_context(mock.patch.object(fit, "run", self.run_of_25_steps))

    def run_of_25_steps(self, wanted, params, state, errors_of):
        self.begun = int(state.step)
        yield state._replace(step=state.step + 25)

    def stop(self, **fields):
        """Begin a fit that is stopped after 25 steps; returns the step that it begins at."""
        with self.assertRaisesRegex(RunStopped, "the same command goes on"):
            fit_solver.fit_solver(model(**fields), ONE, self.workdir, {"step": 7})
        return self.begun

    def test_goes_on_from_the_same_options_alone(self):
        self.assertEqual([self.stop(), self.stop()], [0, 25])
        for field, value in (
            ("steps", 300),
            ("batch_size", 20),
            ("learning_rate", 1e-3),
            ("noises", 300),
            ("held_out", 200),
        ):
            self.assertEqual(self.stop(**{f"fit_solver__{field}": value}), 0, field)
        self.assertEqual(self.stop(), 0)

    @parameterized.parameters(slice(100), slice(0), slice(5, None))
    def test_starts_over_if_its_state_is_damaged(self, left):
        self.stop()
        self.file.write_bytes(self.file.read_bytes()[left])
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            self.assertEqual(self.stop(), 0)
        self.assertIn("4_calls.partial cannot be read, and the fit starts over", logs.output[0])
        self.assertEqual(self.stop(), 25)


class WholeFieldTest(absltest.TestCase):
    def test_guided_field_and_its_calls(self):
        """With guidance in an interval, as one function of t."""

        def apply(params, t, x, label, **_):
            return x * 0 + jnp.where(label < 0, 1.0, 5.0)[:, None, None, None]

        experiment = experiments.images(
            apply=apply, condition__labels=True, guidance__scale=3.0, guidance__interval=(0.25, 0.5)
        )
        field = experiment.whole_field(ONE, label=jnp.zeros(2, jnp.int32))
        x = jnp.zeros((2, 8, 8, 1))
        got = [float(field(jnp.float32(t), x).mean()) for t in (0.0, 0.25, 0.4, 0.5, 0.9)]
        self.assertEqual(got, [5, 13, 13, 5, 5])
        solver = of_method("euler", np.linspace(0, 1, 9))
        solution = experiment.generate(ONE, x, None, {"label": jnp.zeros(2, jnp.int32)}, solver)
        self.assertEqual(solution.nfe, 8 + 2)
        self.assertAlmostEqual(float(solution.x.mean()), 5 + 8 / 4, places=5)


if __name__ == "__main__":
    absltest.main()
