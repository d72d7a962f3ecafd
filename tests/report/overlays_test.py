import os
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from flowmatch_jax.report import overlays, plots
from flowmatch_jax.report.report import write_report
from tests.evaluation.cases import (
    CONFIG,
    POINTS,
    RECORD,
    changed,
    scores,
    write_figures,
    write_run,
)

# file -> the figures that cannot be drawn without it
OF_IMAGES = {
    "over_training.csv": {"figure5", "figure10"},
    "over_nfe.csv": {"figure7_left_euler", "figure7_right_euler"}
    | {"figure7_left_midpoint", "figure7_right_midpoint"}
    | {"figure7_left_best", "figure7_right_best"},
    "sample_paths.npz": {"figure6"},
    "super_resolution.npz": {"super_resolution"},
}
OF_POINTS = {"samples_nfe.npz": {"figure4"}, "sample_paths.npz": {"figure6"}}


def damages(path):
    """Names and functions of what may happen to a file."""
    yield "empty", lambda: os.truncate(path, 0)
    yield "cut", lambda: os.truncate(path, path.stat().st_size - 3)
    yield "something else", lambda: path.write_bytes(b"\xff\xfe\n1,2\n")
    yield "other names", lambda: path.write_bytes(b"a,b\n")


class DamageTest(parameterized.TestCase):
    """A figure of which a file is damaged is left out, and the file is named."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        saves = dict.fromkeys(("save_curves", "save_image_rows", "save_point_rows"), mock.DEFAULT)
        patch = mock.patch.multiple(plots, **saves)  # drawing takes most of the time
        patch.start()
        self.addCleanup(patch.stop)

    def check(self, levels, wanted, **kind):
        sources = {}
        for name in ("a", "b"):
            run = write_run(self.folder / name)
            write_figures(run, **kind)
            sources[name] = run / "figures"
        draw = lambda: {p.stem for p in overlays.draw_overlays(sources, levels, self.folder)}  # noqa: E731
        whole = draw()
        for file, lost in wanted.items():
            path = sources["b"] / file
            content = path.read_bytes()
            for name, damage in damages(path):
                damage()
                with self.subTest(f"{file}: {name}"):
                    if (name, path.suffix) == ("other names", ".csv"):
                        draw()  # the others' curves
                        continue
                    with self.assertLogs(overlays.logger, "WARNING") as logs:
                        self.assertEqual(draw(), whole - lost)
                    self.assertIn(str(path), logs.output[0])
                path.write_bytes(content)

    def test_of_images(self):
        self.check(16, OF_IMAGES, super_resolution=True)

    def test_of_points(self):
        self.check(None, OF_POINTS, points=True)

    @parameterized.parameters("", '{"seeds": ', "[]", "{}")
    def test_settings(self, text):
        """The run has no figures then; the others' are drawn."""
        data = {"data": POINTS, "frechet": None}
        records = [changed(RECORD) | data | {"results": {"ema": scores()}}]
        vp = changed(CONFIG, path__name="vp")
        for name, config in (("ot", CONFIG), ("vp", vp)):
            write_figures(write_run(self.folder / name, config, records), points=True)
        path = self.folder / "vp" / "figures" / "figures.json"
        path.write_text(text)
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            write_report([self.folder / "ot", self.folder / "vp"], self.folder / "report")
        self.assertIn(str(path), logs.output[0])
        text = (self.folder / "report" / "report.md").read_text()
        self.assertIn("Without figures (run --mode=figures): FM w/ Diffusion.", text)
        self.assertIn("(figure4.png)", text)


if __name__ == "__main__":
    absltest.main()
