import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy.stats import norm

from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation import evaluate
from flowmatch_jax.evaluation.likelihoods import make_scorer, score_key
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.metrics.similarity import psnr
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling.linear import of_method
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import images, points, regression

ONE = jnp.ones(())
FITTED = {"solver__method": "fitted", "solver__steps": 2}
METHODS = (("euler", 3), ("heun", 2))  # of two calls
EDM = {"solver__method": "heun", "solver__steps": 50, "solver__grid": "edm"}


class GridTest(absltest.TestCase):
    def test_settings_name_the_grid(self):
        experiment = points(**EDM)
        settings = evaluate.settings(experiment, 10, None)
        self.assertEqual(json.loads(json.dumps(settings)), settings)
        solver = {"method": "heun", "rtol": 1e-5, "atol": 1e-5, "steps": 50, "grid": "edm"}
        self.assertEqual(settings["solver"], solver)

    def test_samples_by_the_grid(self):
        """dx/dt = x / 2 on a path that ends a little before 1, there and back by dopri5."""
        experiment = points(**EDM, path__name="vp", path__vp__eps=0.01)
        grow = np.exp(0.5 * 0.99)
        solution = make_sampler(experiment, 8)(ONE)
        noise = draw_source(source_key(1), (8, 2))
        np.testing.assert_allclose(solution.x, grow * noise, rtol=1e-4)
        scores, _, _ = make_scorer(experiment)(ONE, {"x": solution.x}, score_key(1))
        expected = norm(scale=grow).logpdf(solution.x).sum(axis=1)
        np.testing.assert_allclose(scores["log_likelihood"], expected, rtol=1e-3)
        self.assertEqual(solution.nfe, 100)


class ConditionTest(absltest.TestCase):
    def evaluate(self, **fields):
        """Evaluate dx/dt = x / 2, with 100 test points unless the fields say otherwise."""
        experiment = points(**{"evaluate__images": 100} | fields)
        workdir = Path(self.create_tempdir().full_path)
        sampler = make_sampler(experiment, 8)
        return evaluate.evaluate(experiment, sampler, {"ema": ONE}, 3, workdir)["results"]["ema"]

    def test_settings_name_what_samples_are_given(self):
        settings = evaluate.settings(images(condition__low_resolution=4), 10, None)
        self.assertEqual(settings["condition"]["low_resolution"], 4)
        self.assertNotIn("condition", evaluate.settings(images(), 10, None))

    def test_settings_of_a_model_of_classes_name_its_guidance(self):
        """With and without, so that neither is taken for the other."""
        for scale in (1.0, 2.0):
            experiment = images(condition__labels=True, guidance__scale=scale)
            given = evaluate.settings(experiment, 10, None)["guidance"]
            self.assertEqual(given, {"scale": scale, "interval": [0.0, 1.0]})
        self.assertNotIn("guidance", evaluate.settings(images(), 10, None))

    def test_likelihood_given_the_label_and_low_resolution_of_the_same_item(self):
        """v = c carries N(0, I) to N(c, I)."""
        apply = lambda params, t, x, label, condition: condition + label[:, None, None, None]  # noqa: E731
        options = {"solver__method": "rk4", "solver__steps": 1}
        given = {"condition__labels": True, "condition__low_resolution": 4}
        experiment = images(apply=apply, **options, **given)
        batch = experiment.test_data[:6]
        scores, _, _ = make_scorer(experiment)(ONE, batch, score_key(1))
        inputs = experiment.conditioning.inputs(batch)
        mean = np.asarray(inputs["condition"]) + batch["label"][:, None, None, None]
        # Dequantised within a bin of 2/17: the log-density is that of its middle, or nearly.
        middle = (2 * batch["x"].astype(float) + 1) / 17 - 1
        log_prob = norm.logpdf(middle - mean).sum(axis=(1, 2, 3))
        expected = -log_prob / (64 * np.log(2)) + np.log2(17 / 2)
        np.testing.assert_allclose(scores["bits_per_dim_k1"], expected, rtol=0.02)

    def test_record_of_super_resolution(self):
        """A flow that leaves noise as it is; the rows without a model beside it."""
        experiment = images(
            condition__low_resolution=4,
            evaluate__generated=20,
            evaluate__batch_size=99,
            solver__method="ab2",
            solver__steps=2,
        )
        workdir = Path(self.create_tempdir().full_path)
        sampler = make_sampler(experiment, 8)
        record = evaluate.evaluate(experiment, sampler, {"ema": ONE}, 3, workdir)
        self.assertEqual(set(record["baselines"]), {"Reference", "Bicubic"})
        result = record["results"]["ema"]
        noise = np.concatenate([draw_source(source_key(1, i), (8, 8, 8, 1)) for i in range(3)])
        x = np.asarray(quantise(noise, 17))[:20]
        expected = psnr(x, experiment.test_data.x[:20], 16).mean()
        self.assertAlmostEqual(result["psnr"], expected, places=5)
        self.assertIn("bits_per_dim_k1", result)
        self.assertIsNone(result["ssim"])
        evaluate.evaluate(experiment, sampler, {"raw": ONE}, 3, workdir)
        (record,) = json.loads((workdir / "evaluation" / "3.json").read_text())["evaluations"]
        self.assertEqual(set(record["results"]), {"ema", "raw"})

    def test_likelihoods_do_not_depend_on_the_steps_of_samples(self):
        """Two steps of Euler back along dx/dt = x / 2 would give another density of the noise."""
        found = []
        for method, steps in (("dopri5", None), ("euler", 2), ("dpmpp2m", 2), ("sea", 2)):
            found.append(self.evaluate(solver__method=method, solver__steps=steps))
            self.assertEqual(found[-1]["log_likelihood"], found[0]["log_likelihood"])
            self.assertEqual(found[-1]["likelihood_nfe"], found[0]["likelihood_nfe"])
        self.assertEqual(found[1]["sample_nfe"], 2)
        x = points().test_data[:100]["x"].astype(float)
        expected = norm(scale=np.exp(0.5)).logpdf(x).sum(axis=1).mean()
        self.assertAlmostEqual(found[0]["log_likelihood"], expected, places=3)

    def test_the_solver_of_likelihoods_is_named_where_it_is_another(self):
        for method, steps, said in (("dopri5", None, False), ("euler", 2, True)):
            experiment = points(solver__method=method, solver__steps=steps)
            likelihood = evaluate.settings(experiment, 3, None)["likelihood"]
            self.assertEqual(likelihood.get("method"), "dopri5" if said else None)

    def test_no_likelihoods_of_no_images(self):
        found = self.evaluate(evaluate__images=0)
        self.assertEqual(found.keys(), {"sample_nfe", "samples_converged"})
        with self.assertRaisesRegex(UserError, "config.evaluate.images: got 1; .* 0, or 2 or more"):
            points(evaluate__images=1)

    def test_an_evaluation_is_not_lost_because_of_the_ones_before_it(self):
        path = Path(self.create_tempdir().full_path) / "7.json"
        record = {"step": 7, "results": {"ema": {"psnr": 1.0}}}
        for data in (b"", b'{"evaluations": [', b"\xff", b"[]", b'{"other": 1}'):
            path.write_bytes(data)
            with self.assertLogs("flowmatch_jax.evaluation.evaluate", "WARNING") as logs:
                evaluate.add_record(path, record)
            self.assertIn("cannot be read", logs.output[0])
            self.assertEqual(evaluate.read_records(path), [record])
            self.assertEqual(path.with_name("7.json.unreadable").read_bytes(), data)

    def test_the_path_of_samples_is_named_where_it_is_not_the_model_s(self):
        self.assertNotIn("path", evaluate.settings(points(), 10, None)["solver"])
        settings = evaluate.settings(points(solver__path="vp"), 10, None)
        self.assertEqual(settings["solver"]["path"], "vp")

    def test_a_fitted_solver_is_named_by_its_content(self):
        """Wherever its file is, so that samples by two are never taken for those of one."""
        first, second = (
            points(**FITTED, solver__file=file) for file in ("solver.json", "/moved/solver.json")
        )
        euler, heun = (of_method(name, np.linspace(0, 1, n)) for name, n in METHODS)
        settings = [
            evaluate.settings(dataclasses.replace(experiment, fitted=solver), 10, None)
            for experiment, solver in ((first, euler), (second, euler), (first, heun))
        ]
        self.assertEqual(settings[0], settings[1])
        self.assertNotEqual(settings[0]["solver"], settings[2]["solver"])

    def test_no_likelihood_without_a_field(self):
        experiment = regression(evaluate__generated=64 + 8)
        workdir = Path(self.create_tempdir().full_path)
        sampler = make_sampler(experiment, 8)
        record = evaluate.evaluate(experiment, sampler, {"ema": ONE}, 3, workdir)
        result, bicubic = record["results"]["ema"], record["baselines"]["Bicubic"]
        self.assertNotIn("bits_per_dim_k1", result)
        self.assertEqual((result["sample_nfe"], result["psnr"]), (1, bicubic["psnr"]))


if __name__ == "__main__":
    absltest.main()
