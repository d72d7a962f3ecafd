import dataclasses
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.report import figures
from tests.evaluation.experiments import points, regression
from tests.report.cases import FolderTestCase

ONE = jnp.ones(())
CURVES = ("draw_conditional", "draw_over_nfe", "draw_over_training")


class FiguresTest(FolderTestCase):
    def test_conditional_flows_end_in_their_point(self):
        figures.draw_conditional(points(), self.folder)
        self.assertEqual(self.pictures(), {"conditional"})
        rows = self.rows("conditional")
        self.assertEqual({row["path"] for row in rows}, {"ot", "vp"})
        ot = [row for row in rows if row["path"] == "ot" and row["trajectory"] == "3"]
        start, middle, end = (
            np.array([float(row["x"]), float(row["y"])]) for row in (ot[0], ot[24], ot[-1])
        )
        np.testing.assert_allclose(end, [1.0, 0.5], atol=1e-4)
        t = float(ot[24]["t"])
        np.testing.assert_allclose(middle, (1 - t) * start + t * end, atol=1e-4)  # straight

    def test_losses_over_training(self):
        figures.draw_losses([], self.folder)
        self.assertEmpty(list(self.folder.iterdir()))
        losses = [{"step": 1, "loss": 2.0, "validation_loss_ema": None}]
        figures.draw_losses(
            [*losses, {"step": 2, "loss": -1.0, "validation_loss_ema": 1.5}], self.folder
        )
        self.assertEqual(self.pictures(), {"losses"})
        self.assertEqual(self.rows("losses")[1]["validation_loss_ema"], "1.5")

    def test_points_that_are_not_in_the_plane(self):
        for d in (1, 3):
            x = np.random.RandomState(0).randn(20, d).astype(np.float32)
            data = Dataset("points", "1", "test", x)
            experiment = dataclasses.replace(points(), train_data=data, test_data=data)
            draw = mock.patch.multiple(figures, **dict.fromkeys(CURVES, mock.DEFAULT))
            with draw, mock.patch.object(figures, "draw_density") as density:
                figures.draw_figures(experiment, ONE, 1, [], self.folder)
            density.assert_not_called()
            folder = self.folder / "figures"
            self.assertEqual(np.load(folder / "sample_paths.npz")["x"].shape, (9, 8, d))
            self.assertTrue((folder / "marginals.png").exists())

    def test_methods_without_a_field_have_no_paths(self):
        figures.draw_figures(regression(), ONE, 7, [(3, ONE), (7, ONE)], self.folder)
        drawn = {path.stem for path in (self.folder / "figures").glob("*.png")}
        self.assertEqual(
            drawn, {"super_resolution", "nfe_over_training", "fd_pixels_over_training"}
        )

    def test_drawn_or_not(self):
        experiment, workdir = points(train__steps=7), self.folder
        self.assertFalse(figures.are_drawn(experiment, workdir))
        (workdir / "figures").mkdir()
        figures.write_json(
            workdir / "figures" / "figures.json",
            figures.settings(experiment, step=7, workdir=workdir),
        )
        self.assertTrue(figures.are_drawn(experiment, workdir))
        self.assertFalse(figures.are_drawn(points(train__steps=8), workdir))
        self.assertFalse(figures.are_drawn(points(train__steps=7, figures__seeds=9), workdir))


if __name__ == "__main__":
    absltest.main()
