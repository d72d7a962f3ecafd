"""Parts that the config chooses, as the whole experiment has them, and choices that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import checkerboard_ot, digits_ot
from flowmatch_jax import marginals, times
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.experiment import build
from flowmatch_jax.parts.data import make_pairing
from flowmatch_jax.parts.solver import make_likelihood_solver
from flowmatch_jax.paths import PATHS
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver


class PartsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"time": "likelihood", "name": "ddpm"}, "time: got 'likelihood'; .*only flow_matching"),
        ({"time": "logit_normal", "time_options": {"std": -1.0}}, "time_options.std: got -1.0"),
        ({"time_options": {"mean": 0.0}}, "time_options: .*distribution uniform takes stratified"),
        ({"time_options": {"stratified": 1.0}}, "time_options.stratified: .*True or False"),
        (
            {"time": "importance", "name": "scoreflow", "time_options": {"mean": 0.0}},
            "time_options: .*importance takes stratified",
        ),
    )
    def test_times_that_are_refused(self, fields, error):
        config = digits_ot.get_config()
        config.path.name, config.objective.predicts = "vp", "noise"
        options = fields.pop("time_options", {})
        config.objective.update(fields)
        config.objective.time_options = options
        with self.assertRaisesRegex(UserError, f"config.objective.{error}"):
            build(config)

    @parameterized.parameters(
        ({}, "data.pairs.folder: got None; the coupling paired takes them"),
        ({"objective.coupling": "independent"}, "objective.coupling: got 'independent'; pairs"),
        ({"condition.low_resolution": 4}, "condition.low_resolution: got 4; pairs have none"),
        ({"data.storage": "device"}, "data.storage: got 'device'; pairs are read from"),
        ({"data.dequantisation": "truncated_normal"}, "data.dequantisation: got 'truncated"),
        ({"objective.name": "maximum_likelihood"}, "objective.name: got 'maximum_likelihood'"),
        ({"data.pairs.drop_most_distant": 1.0}, "data.pairs.drop_most_distant: got 1.0"),
        (
            {"data.pairs.held_out": 0.0, "train.validation_batches": 1},
            "train.validation_batches: got 1; no pairs are held out",
        ),
        ({"seed": 0}, "data.pairs.folder: got 'nowhere'; pairs.json cannot be read there"),
    )
    def test_pairs_that_are_refused(self, fields, error):
        config = experiment_config("configs/digits_reflow.py")
        config.data.pairs.folder = "nowhere" if fields else None
        config.update_from_flattened_dict(fields)
        with self.assertRaisesRegex(UserError, f"config.{error}"):
            build(config)

    def test_pairing_on_the_host(self):
        """Of the options and, where the network is given labels, within them."""
        config = digits_ot.get_config()
        self.assertIsNone(make_pairing(config, 17, 0))
        config.objective.coupling, config.condition.labels = "minibatch_ot", True
        config.minibatch_ot.update(method="sinkhorn", regularisation=0.5, batches=3)
        expected = Pairing(MinibatchOT("sinkhorn", 0.5, 3), 17, by_label=True, seed=5)
        self.assertEqual(make_pairing(config, 17, 5), expected)
        config.condition.labels = False
        self.assertFalse(make_pairing(config, 17, 5).by_label)

    def test_dequantisation(self):
        """The path ends where its noise fits the bins of 17 levels."""
        config = digits_ot.get_config()
        config.data.dequantisation = "truncated_normal"
        experiment = build(config)
        self.assertAlmostEqual(experiment.path.t_end, 51 / 52, places=4)
        self.assertEqual(experiment.solver().grid, None)
        config.objective.name = "maximum_likelihood"
        config.network.unet.dropout = 0.0
        with self.assertRaisesRegex(UserError, "config.data.dequantisation: .*maximum_likelihood"):
            build(config)
        config = checkerboard_ot.get_config()
        config.data.dequantisation = "truncated_normal"
        with self.assertRaisesRegex(UserError, "config.data.dequantisation: .*set of points"):
            build(config)

    @parameterized.parameters(
        ({"method": "euler", "noise": "sigma"}, "noise: got 'sigma'; euler adds no noise"),
        ({"method": "dopri5", "steps": None, "noise_scale": 2.0}, "noise_scale: .*no noise"),
        ({"noise": "loud"}, "noise: got 'loud'; it may be one of: constant, diffusion"),
        ({"noise_scale": -1.0}, "noise_scale: got -1.0; it must be 0.0 or more"),
        ({"noise": "diffusion"}, "noise: got 'diffusion'; this path is no diffusion"),
        ({"steps": None}, "steps: got None; the fixed method 'sea' takes"),
    )
    def test_stochastic_solvers_that_are_refused(self, fields, error):
        config = checkerboard_ot.get_config()
        config.solver.update({"method": "sea", "steps": 2} | fields)
        with self.assertRaisesRegex(UserError, f"config.solver.{error}"):
            build(config)

    def test_a_stochastic_solver(self):
        """It draws samples along the path that it is given; likelihoods are the ODE's."""
        config = checkerboard_ot.get_config()
        config.solver.update(method="sea", steps=2, noise="diffusion", noise_scale=2.0, path="vp")
        experiment = build(config)
        solver = make_likelihood_solver(experiment.config)
        self.assertEqual((solver.method, solver.rtol), ("dopri5", config.solver.rtol))
        path = experiment.sampling_path
        level = experiment.solver(path).noise(path, jnp.array(0.25))
        np.testing.assert_allclose(level, 2 * np.sqrt(0.1 + 19.9 * 0.75), rtol=1e-6)

    def test_options_of_grids(self):
        config = checkerboard_ot.get_config()
        config.solver.update(method="euler", steps=5, grid="shift", grid_options={"k": 2.0})
        experiment = build(config)
        expected = times.shift_grid(5, experiment.path, k=2.0)
        np.testing.assert_array_equal(experiment.solver().grid, expected)
        for grid, options, message in (
            ("shift", {"k": -1.0}, "config.solver.grid_options.k: got -1.0; it must be greater"),
            ("shift", {"k": "many"}, "config.solver.grid_options.k: got 'many'; it takes a number"),
            ("sway", {"k": 2.0}, "config.solver.grid_options: .* the grid sway takes s"),
            ("edm", {"s": 2.0}, "config.solver.grid_options: .* takes no options"),
        ):
            config.solver.update(grid=grid)
            config.solver.grid_options = options
            with self.assertRaisesRegex(UserError, message):
                build(config)


class FlowMapTest(parameterized.TestCase):
    def flow_map_of_points(self, **fields):
        """An experiment whose network is the exact average velocity of data N(0.3, 0.5^2)."""
        config = experiment_config("configs/checkerboard_mean_flow.py")
        config.update_from_flattened_dict(fields)
        experiment = build(config)
        exact = marginals.gaussian_average_velocity(experiment.path, 0.3, 0.5)
        apply = lambda params, t, x, end=None, **_: exact(t, t if end is None else end, x)  # noqa: E731
        return dataclasses.replace(experiment, apply=apply)

    @parameterized.parameters(1, 2, 3)
    def test_samples_by_calls_of_a_flow_map(self, steps):
        fields = {"solver.method": "flow_map", "solver.steps": steps, "solver.grid": "cosine"}
        experiment = self.flow_map_of_points(**fields)
        x0 = jax.random.normal(jax.random.key(0), (6, 2))
        samples = experiment.generate({}, x0, jax.random.key(1), {})
        np.testing.assert_allclose(samples.x, 0.3 + 0.5 * x0, rtol=1e-3, atol=1e-5)
        self.assertEqual(samples.nfe, steps)
        # The solver of a script; and its field is that of all other methods.
        solver = Solver("flow_map", steps=4)
        self.assertEqual(experiment.generate({}, x0, jax.random.key(1), {}, solver).nfe, 4)
        solved = experiment.generate({}, x0, jax.random.key(1), {}, Solver("rk4", steps=20))
        np.testing.assert_allclose(solved.x, 0.3 + 0.5 * x0, rtol=1e-3, atol=1e-4)
        elsewhere = Solver("flow_map", steps=4, path=PATHS["vp"]())
        with self.assertRaisesRegex(UserError, "config.solver.path: .*path of training"):
            experiment.generate({}, x0, jax.random.key(1), {}, elsewhere)

    @parameterized.parameters(
        ({"network.two_times": False}, "network.two_times: got False; mean_flow learns"),
        ({"objective.name": "flow_matching"}, "network.two_times: got True; flow_matching learns"),
        ({"objective.predicts": "data"}, "objective.predicts: got 'data'; .* use velocity"),
        ({"objective.time": "skewed"}, "objective.time: got 'skewed'; .*leave it as it is"),
        ({"objective.time_options": {"stratified": True}}, "objective.time_options: got {'strat"),
        ({"network.time_input": "log_snr"}, "network.time_input: got 'log_snr'; .* use t"),
        ({"flow_map.guidance": 2.0}, "flow_map.guidance: got 2.0; it needs"),
        ({"flow_map.equal": 2.0}, r"flow_map.equal: got 2.0; it must be in \[0, 1\]"),
        ({"solver.method": "flow_map"}, "solver.steps: got None; .*'flow_map' takes"),
        (
            {"solver.method": "flow_map", "solver.steps": 1, "solver.path": "vp"},
            "solver.path: got 'vp'; the method flow_map follows",
        ),
        (
            {
                "solver.method": "flow_map",
                "solver.steps": 1,
                "guidance.scale": 2.0,
                "condition.labels": True,
            },
            "guidance.scale: got 2.0; a flow map has",
        ),
        (
            {
                "solver.method": "flow_map",
                "solver.steps": 1,
                "objective.name": "flow_matching",
                "network.two_times": False,
            },
            "solver.method: got 'flow_map'; the model has no flow map",
        ),
    )
    def test_flow_maps_that_are_refused(self, fields, error):
        config = experiment_config("configs/digits_mean_flow.py")
        config.update_from_flattened_dict(fields)
        with self.assertRaisesRegex(UserError, f"^config.{error}"):
            build(config)

    def test_a_flow_map_by_one_s_own_network(self):
        """It is handed the second time; one that does not take it is refused before the run."""
        config = experiment_config("configs/checkerboard_mean_flow.py")
        config.network.name = "flowmatch_jax.networks.mlp:MLP"
        config.network.options = {"width": 8, "depth": 1, "two_times": True}
        experiment = build(config)
        params = experiment.init_params(jax.random.key(0))
        batch = {"x": jnp.ones((4, 2)), "x0": jnp.zeros((4, 2))}
        loss, _ = experiment.objective(experiment.apply, params, batch, jax.random.key(1))
        self.assertTrue(bool(jnp.isfinite(loss)))
        config.network.options = {"width": 8, "depth": 1}
        with self.assertRaisesRegex(UserError, "config.network.name: .*end"):
            build(config)


if __name__ == "__main__":
    absltest.main()
