from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.pairs import PairOptions, open_pairs
from flowmatch_jax.data.pipeline import items_at
from flowmatch_jax.generate_pairs import check_pairs, draw_labels, generate_pairs
from flowmatch_jax.paths import variance_exploding
from flowmatch_jax.predictions import network_input
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.stops import StopNotice
from tests.evaluation import experiments

VE_STD = variance_exploding().source_std
EULER = {"solver__method": "ab2", "solver__steps": 1}  # whose first step is Euler's
PAIRS = {"pairs__count": 24, "pairs__batch_size": 8} | EULER


def by_label(params, t, x, label=None, **_):
    """One step of Euler's from x_0 ends in a constant picture of the label."""
    return label[:, None, None, None] - x


class GeneratePairsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def generate(self, experiment, name="pairs", params=1.0):
        generate_pairs(experiment, jnp.float32(params), self.folder / name, {"step": 3})
        return self.folder / name

    def pairs(self, experiment, folder):
        options, labels = PairOptions(str(folder), held_out=0.0), experiment.conditioning.labels
        source = open_pairs(options, experiment.train_data, labels).train
        return items_at(source, np.arange(len(source)))

    def test_pairs_are_solutions_from_unit_noise(self):
        """One Euler step along dx/dt = x / 2, x being in the network's units."""
        for path, std in (("ot", 1.0), ("ve", VE_STD)):
            experiment = experiments.points(
                **PAIRS | {"pairs__count": 2000, "pairs__batch_size": 1000, "path__name": path}
            )
            pairs = self.pairs(experiment, self.generate(experiment, path))
            start = std * pairs["x0"]
            slope = 0.5 * network_input(experiment.path, 0.0, jnp.asarray(start))
            end = start + experiment.path.t_end * slope
            np.testing.assert_allclose(pairs["x"], end, rtol=1e-5)
            error = abs(np.mean(pairs["x0"] ** 2) - 1) / np.sqrt(2 / pairs["x0"].size)
            self.assertLess(error, 4)
            self.assertLen(np.unique(pairs["x0"], axis=0), 2000)

    def test_labels_are_those_of_the_samples(self):
        experiment = experiments.images(apply=by_label, condition__labels=True, **PAIRS)
        pairs = self.pairs(experiment, self.generate(experiment))
        self.assertEqual(pairs["x"].shape, (24, 8, 8, 1))
        shown = np.broadcast_to(pairs["label"][:, None, None, None], pairs["x"].shape)
        np.testing.assert_allclose(pairs["x"], shown, atol=1e-5)
        self.assertGreater(len(set(pairs["label"])), 3)

    def test_labels_have_the_frequencies_of_training(self):
        counts, n = np.array([1, 0, 6, 3]), 20_000
        share = np.bincount(draw_labels(counts, seed=0, chunk=2, n=n), minlength=4) / n
        wanted = counts / 10
        standard_error = np.sqrt(wanted * (1 - wanted) / n)
        self.assertTrue((np.abs(share - wanted) <= 4 * standard_error).all())

    def test_a_stopped_command_ends_with_the_same_bytes(self):
        experiment = experiments.images(rate=0.5, **PAIRS)
        whole = self.generate(experiment, "whole")
        reached = lambda self, step: setattr(self, "signal", "SIGTERM") or step == 0  # noqa: E731
        with (
            mock.patch.object(StopNotice, "reached", reached),
            self.assertRaisesRegex(RunStopped, "SIGTERM: 16 pairs are left; the same command"),
        ):
            self.generate(experiment, "parts")
        parts = self.generate(experiment, "parts")
        for name in ("pairs.bin", "pairs.json"):
            self.assertEqual((whole / name).read_bytes(), (parts / name).read_bytes(), name)

    def test_a_field_that_is_not_finite(self):
        with self.assertRaisesRegex(RunStopped, "the field is not finite; try a fixed method"):
            self.generate(experiments.points(**PAIRS), params=float("nan"))

    @parameterized.parameters(
        ({"solver__method": "sea", "solver__steps": 2}, "solver.method: got 'sea'; it adds noise"),
        ({"condition__low_resolution": 4}, "condition.low_resolution: got 4"),
        (
            {
                "condition__low_resolution": 4,
                "objective__name": "regression",
                "objective__predicts": "data",
            },
            "objective.name: got 'regression'; it has no flow",
        ),
    )
    def test_models_without_pairs(self, fields, error):
        with self.assertRaisesRegex(UserError, f"config.{error}"):
            check_pairs(experiments.images(**fields))


if __name__ == "__main__":
    absltest.main()
