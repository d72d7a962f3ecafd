import json

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy.stats import norm

from flowmatch_jax.evaluation import evaluate
from flowmatch_jax.evaluation.samples import make_sampler, sample_key
from flowmatch_jax.evaluation.scores import make_scorer, score_key
from flowmatch_jax.sampling import draw_source
from tests.evaluation.experiments import points

ONE = jnp.ones(())
EDM = {"solver__method": "heun", "solver__steps": 50, "solver__grid": "edm"}


class GridTest(absltest.TestCase):
    def test_settings_name_the_grid(self):
        experiment = points(**EDM)
        settings = evaluate.settings(experiment, 10, None)
        self.assertEqual(json.loads(json.dumps(settings)), settings)
        solver = {"method": "heun", "rtol": 1e-5, "atol": 1e-5, "steps": 50, "grid": "edm"}
        self.assertEqual(settings["solver"], solver)

    def test_samples_and_likelihoods_by_the_grid(self):
        """dx/dt = x / 2 on a path that ends a little before 1, there and back."""
        experiment = points(**EDM, path__name="vp", path__vp__eps=0.01)
        grow = np.exp(0.5 * 0.99)
        solution = make_sampler(experiment, 8)(ONE)
        noise = draw_source(sample_key(1), (8, 2))
        np.testing.assert_allclose(solution.x, grow * noise, rtol=1e-4)
        scores, nfe, _ = make_scorer(experiment)(ONE, {"x": solution.x}, score_key(1))
        expected = norm(scale=grow).logpdf(solution.x).sum(axis=1)
        np.testing.assert_allclose(scores["log_likelihood"], expected, rtol=1e-3)
        self.assertEqual((solution.nfe, nfe), (100, 100))


if __name__ == "__main__":
    absltest.main()
