from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.couplings import draw_source
from flowmatch_jax.report import plots, sample_figures
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import exact_map, images, points
from tests.report.cases import FolderTestCase

ONE = jnp.ones(())


class SampleFiguresTest(FolderTestCase):
    def test_density_of_the_model(self):
        """dx/dt = a x carries N(0, I) to N(0, e^2a I)."""
        sample_figures.draw_density(points(evaluate__batch_size=2500), ONE, self.folder)
        rows = self.rows("density")
        self.assertLen(rows, 100 * 100)
        x, y, logs = (np.array([float(row[n]) for row in rows]) for n in ("x", "y", "log_density"))
        expected = -np.log(2 * np.pi) - 1.0 - (x**2 + y**2) / (2 * np.exp(1.0))
        np.testing.assert_allclose(logs, expected, atol=1e-3)

    def test_points_on_their_way(self):
        sample_figures.draw_paths(points(), ONE, self.folder)
        sample_figures.draw_few_calls(points(), ONE, self.folder)
        self.assertEqual(self.pictures(), {"sample_paths", "marginals", "samples_nfe"})
        at_end = [row for row in self.rows("sample_paths") if float(row["t"]) == 1]
        self.assertTrue(all(float(row["rms_to_end"]) == 0 for row in at_end))
        self.assertEqual(np.load(self.folder / "sample_paths.npz")["x"].shape, (9, 8, 2))
        self.assertEqual(np.load(self.folder / "samples_nfe.npz")["x"].shape, (4, 8, 2))

    def test_points_by_calls_of_a_flow_map(self):
        """The exact map of dx/dt = x / 2 ends at the same points by any number of calls."""
        experiment = points(apply=exact_map, objective__name="mean_flow", network__two_times=True)
        with mock.patch.object(plots, "save_point_rows", wraps=plots.save_point_rows) as save:
            sample_figures.draw_map_calls(experiment, ONE, self.folder)
        self.assertEqual(self.pictures(), {"samples_flow_map"})
        (_, rows, _), _ = save.call_args
        self.assertEqual(list(rows[""]), ["NFE 1", "NFE 2", "NFE 4", "data"])
        x0 = draw_source(source_key(experiment.config.evaluate.seed), (8, 2))
        for n in (1, 2, 4):
            np.testing.assert_allclose(rows[""][f"NFE {n}"], np.exp(0.5) * x0, rtol=1e-5)

    def test_images_by_calls_of_a_flow_map(self):
        fields = {"objective__name": "mean_flow", "network__two_times": True}
        still = lambda params, t, x, end=None, **_: params * jnp.zeros_like(x)  # noqa: E731
        sample_figures.draw_map_calls(images(apply=still, **fields), ONE, self.folder)
        self.assertEqual(self.pictures(), {"samples_flow_map"})

    def test_images_on_their_way(self):
        sample_figures.draw_paths(images(), ONE, self.folder)
        sample_figures.draw_few_calls(images(), ONE, self.folder)
        self.assertEqual(self.pictures(), {"sample_paths", "samples_nfe"})
        self.assertEqual({row["nfe"] for row in self.rows("samples_nfe")}, {"4", "8", "10", "20"})

    def test_super_resolution(self):
        sample_figures.draw_super_resolution(images(condition__low_resolution=4), ONE, self.folder)
        self.assertEqual(self.pictures(), {"super_resolution"})
        rows = np.load(self.folder / "super_resolution.npz")
        self.assertEqual(rows.files, ["low resolution", "bicubic", "sample", "original"])
        self.assertTrue(all(rows[name].shape == (8, 8, 8, 1) for name in rows.files))


if __name__ == "__main__":
    absltest.main()
