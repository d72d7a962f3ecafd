from absl.testing import absltest

from flowmatch_jax.report.tables import Cell, Column, Table

TABLE = Table(
    "Scores of two & more_methods.",
    [Column("NLL (bits/dim)", 2), Column("fd_pixels", 1), Column("steps", 0, None)],
    {
        "FM w/ OT": [Cell(2.991, 0.004), Cell(None), Cell(100)],
        "DDPM": [Cell(3.12, 0.01), Cell(7.48), Cell(100)],
        "100% twin": [Cell(2.994, 0.2), Cell(8.0), Cell(50)],
    },
)


class TableTest(absltest.TestCase):
    def test_markdown(self):
        self.assertEqual(
            TABLE.markdown().splitlines(),
            [
                "Scores of two & more_methods.",
                "",
                "|  | NLL (bits/dim) | fd_pixels | steps |",
                "| --- | --- | --- | --- |",
                # Best to the digits that are shown; where one is missing, among the others.
                "| FM w/ OT | **2.99 +- 0.00** | not evaluated | 100 |",
                "| DDPM | 3.12 +- 0.01 | **7.5** | 100 |",
                "| 100% twin | **2.99 +- 0.20** | 8.0 | 50 |",
            ],
        )

    def test_latex(self):
        text = TABLE.latex()
        self.assertIn(r"\caption{Scores of two \& more\_methods.}", text)
        self.assertIn(r" & NLL (bits/dim) & fd\_pixels & steps \\", text)
        self.assertIn(r"FM w/ OT & \textbf{2.99 $\pm$ 0.00} & not evaluated & 100 \\", text)
        self.assertIn(r"100\% twin & \textbf{2.99 $\pm$ 0.20} & 8.0 & 50 \\", text)
        self.assertIn(r"\begin{tabular}{lrrr}", text)

    def test_the_largest_may_be_best_and_rows_for_scale_never(self):
        rows = {"real": [Cell(40.0)], "a": [Cell(20.0)], "b": [Cell(30.0)]}
        table = Table("PSNR.", [Column("PSNR", 1, max)], rows, for_scale=["real"])
        self.assertEqual(
            table.markdown().splitlines()[4:],
            ["| real | 40.0 |", "| a | 20.0 |", "| b | **30.0** |"],
        )

    def test_records_are_not_rounded(self):
        first, second, _ = TABLE.records()
        self.assertEqual(first["method"], "FM w/ OT")
        self.assertEqual(first["NLL (bits/dim)"], 2.991)
        self.assertEqual(first["NLL (bits/dim) standard error"], 0.004)
        self.assertIsNone(first["fd_pixels"])
        self.assertIsNone(second["fd_pixels standard error"])

    def test_one_row_has_no_best(self):
        table = Table("", [Column("NLL", 1)], {"alone": [Cell(1.0)]})
        self.assertNotIn("**", table.markdown())


if __name__ == "__main__":
    absltest.main()
