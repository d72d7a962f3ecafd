"""The command line of the metrics, in this process, and folders of pictures for it."""

import contextlib
import io
from pathlib import Path

from PIL import Image

from flowmatch_jax.metrics.__main__ import main


def run(*arguments):
    """(exit code, standard output, standard error without the lines of progress bars)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    lines = [line for line in err.getvalue().splitlines() if " left]" not in line]
    return code, out.getvalue(), "\n".join(lines)


def table(out):
    """Title -> cell of a table, and the lines below it."""
    rows = [line.rsplit("  ", 1) for line in out.splitlines()]
    cells = {row[0].strip(): row[1] for row in rows if len(row) == 2}
    return cells, [row[0] for row in rows if len(row) == 1]


def pictures(folder, x, suffix=".png"):
    """Write uint8 images [N, H, W, C] as pictures of their numbers; returns the folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x):
        Image.fromarray(image.squeeze()).save(Path(folder) / f"{i:03d}{suffix}")
    return folder
