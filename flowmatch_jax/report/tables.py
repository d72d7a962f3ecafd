"""Tables of results as Markdown, CSV and LaTeX, with the best of each column in bold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

MISSING = "not evaluated"


@dataclass(frozen=True)
class Cell:
    """A value in a table.

    Attributes:
        value: the mean; None if it was not measured.
        error: the standard error, if there is one.
    """

    value: float | None
    error: float | None = None


def over_seeds(values: Sequence[float | None]) -> Cell:
    """Return the mean of one value for each seed with its standard error; nothing if one lacks."""
    measured = [value for value in values if value is not None]
    if len(measured) < len(values):
        return Cell(None)
    error = stdev(measured) / math.sqrt(len(measured)) if len(measured) > 1 else None
    return Cell(mean(measured), error)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: title of the column.
        digits: number of decimals.
        best: function that selects the value in bold, min or max; None: no value.
    """

    title: str
    digits: int
    best: Callable[[list[float]], float] | None = min


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        caption: one or more sentences on the conditions of the results.
        columns: columns of the cells, without the column of row labels.
        rows: label -> a cell for each column.
        for_scale: labels of reference rows, which are never the best.
    """

    caption: str
    columns: Sequence[Column]
    rows: dict[str, Sequence[Cell]]
    for_scale: Collection[str] = ()

    def markdown(self) -> str:
        """Format as a Markdown pipe table below the caption."""
        header = ["", *(column.title for column in self.columns)]
        lines = [header, ["---"] * len(header)]
        lines += [[label, *self._texts(label, "**{}**", " +- ")] for label in self.rows]
        return self.caption + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def latex(self) -> str:
        """Format as a LaTeX table with booktabs."""
        head = " & ".join(["", *(_escaped(column.title) for column in self.columns)])
        lines = [
            " & ".join([_escaped(label), *self._texts(label, r"\textbf{{{}}}", r" $\pm$ ")])
            for label in self.rows
        ]
        body = "".join(line + " \\\\\n" for line in lines)
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_escaped(self.caption)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * len(self.columns)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
            f"{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )

    def records(self) -> list[dict[str, float | str | None]]:
        """Return a dict per row for CSV, with unrounded values and standard errors."""
        rows = []
        for label, cells in self.rows.items():
            row: dict[str, float | str | None] = {"method": label}
            for column, cell in zip(self.columns, cells, strict=True):
                row[column.title] = cell.value
                row[f"{column.title} standard error"] = cell.error
            rows.append(row)
        return rows

    def _texts(self, label: str, bold: str, plus_minus: str) -> list[str]:
        texts = []
        for i, (column, cell) in enumerate(zip(self.columns, self.rows[label], strict=True)):
            if cell.value is None:
                texts.append("-" if label in self.for_scale else MISSING)
                continue
            text = f"{cell.value:.{column.digits}f}"
            if cell.error is not None:
                text += f"{plus_minus}{cell.error:.{column.digits}f}"
            best = label not in self.for_scale and self._is_best(i, cell)
            texts.append(bold.format(text) if best else text)
        return texts

    def _is_best(self, i: int, cell: Cell) -> bool:
        column = self.columns[i]
        shown = [
            round(cells[i].value, column.digits)
            for label, cells in self.rows.items()
            if cells[i].value is not None and label not in self.for_scale
        ]
        if column.best is None or len(shown) < 2:
            return False
        return round(cell.value, column.digits) == column.best(shown)


def _escaped(text: str) -> str:
    for character in "\\&%_#":
        text = text.replace(character, f"\\{character}")
    return text.replace("+-", r"$\pm$")
