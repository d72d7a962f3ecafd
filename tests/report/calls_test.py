import math
from pathlib import Path

from absl.testing import absltest

from flowmatch_jax.report.calls import table_of_calls
from flowmatch_jax.runtime.errors import UserError
from tests.evaluation.cases import write_figures, write_run


class CallsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def figures(self, name, *numbers, **settings):
        """The folder of a run's figures, with distances at (method, NFE, distance)."""
        run = write_run(self.folder / name)
        write_figures(run, **settings)
        lines = "".join(f"{method},{nfe},0.1,{fd}\n" for method, nfe, fd in numbers)
        path = run / "figures" / "over_nfe.csv"
        path.write_text("method,nfe,mean_squared_error,fd_pixels\n" + lines)
        return run / "figures"

    def test_the_best_solver_of_each_run_at_each_number_of_calls(self):
        a = self.figures("a", ("euler", 1, 9.0), ("flow_map", 1, 0.3), ("ab2", 4, 0.2))
        b = self.figures("b", ("euler", 1, 5.0), ("ab2", 4, 0.4), ("fitted", 4, 0.5))
        table = table_of_calls({"a map": [a], "a flow": [b]})
        self.assertEqual([column.title for column in table.columns], ["1 call", "4 calls"])
        values = {label: [cell.value for cell in cells] for label, cells in table.rows.items()}
        self.assertEqual(values, {"a map": [0.3, 0.2], "a flow": [5.0, 0.4]})
        self.assertIn("| a map | **0.300** | **0.200** |", table.markdown())
        self.assertIn("fd_pixels of 500 samples", table.caption)

    def test_seeds(self):
        """Each with the solver that is best for it; one without the number gives no mean."""
        a = self.figures("a", ("euler", 4, 1.0), ("ab2", 4, 0.2), ("ab2", 8, 0.1))
        b = self.figures("b", ("euler", 4, 0.4), ("ab2", 4, 0.8))
        (four, eight) = table_of_calls({"flow": [a, b]}).rows["flow"]
        self.assertAlmostEqual(four.value, 0.3)
        self.assertAlmostEqual(four.error, 0.2 / math.sqrt(2) / math.sqrt(2))
        self.assertIsNone(eight.value)

    def test_runs_without_distances(self):
        self.assertIsNone(table_of_calls({}))
        run = write_run(self.folder / "points")
        write_figures(run, points=True)
        self.assertIsNone(table_of_calls({"points": [run / "figures"]}))
        run = write_run(self.folder / "regression")
        write_figures(run, flow=False)
        self.assertIsNone(table_of_calls({"regression": [run / "figures"]}))

    def test_damaged_numbers(self):
        whole, cut = (self.figures(name, ("euler", 4, 1.0)) for name in ("whole", "cut"))
        path = cut / "over_nfe.csv"
        path.write_text(path.read_text()[:-2])
        with self.assertLogs("flowmatch_jax.report.calls", "WARNING") as logs:
            table = table_of_calls({"whole": [whole], "cut": [cut]})
        self.assertIn(str(path), logs.output[0])
        self.assertEqual(list(table.rows), ["whole"])

    def test_settings_that_differ(self):
        """A run's own step and fitted solvers do not count."""
        solver = {"method": "fitted", "steps": 8}
        a, b = (
            self.figures(
                name, ("fitted", 8, 1.0), solver=solver | {"sha256": name}, fitted={name: name}
            )
            for name in "ab"
        )
        self.assertLen(table_of_calls({"a": [a], "b": [b]}).rows, 2)
        other = self.figures("c", ("euler", 4, 1.0), solver=solver | {"steps": 4})
        with self.assertRaisesRegex(UserError, "drawn with solver = .*draw both with the same"):
            table_of_calls({"a": [a], "c": [other]})


if __name__ == "__main__":
    absltest.main()
