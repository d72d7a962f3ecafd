"""Prepare a published dataset once, from its archives.

    python -m flowmatch_jax.data.prepare cifar10 --data_dir=data --archives=downloads

The same command continues an interrupted preparation.
Exit codes: 0 success; 2 user error, reported in one line; 1 any other error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flowmatch_jax.data.images.records import default_data_dir
from flowmatch_jax.data.prepare.layouts import LAYOUTS
from flowmatch_jax.data.prepare.prepare import prepare
from flowmatch_jax.runtime.errors import ArgumentParser, UserError, one_of, tell


def main(arguments: Sequence[str]) -> int:
    """Prepare the dataset that the command line names; returns the exit code."""
    parser = ArgumentParser(prog="python -m flowmatch_jax.data.prepare", description=__doc__)
    parser.add_argument("name", help=f"one of: {', '.join(sorted(LAYOUTS))}")
    default = default_data_dir()
    parser.add_argument(
        "--data_dir", type=Path, default=default, help="folder of datasets; default: %(default)s"
    )
    parser.add_argument("--archives", type=Path, help="folder of the published archives")
    try:
        given = parser.parse_args(arguments)
        one_of("NAME", given.name, LAYOUTS)
        archives = given.archives and given.archives.expanduser()
        folder = prepare(LAYOUTS[given.name], given.data_dir.expanduser(), archives)
    except UserError as error:
        tell(error)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", file=sys.stderr)
        return 1
    print(f"Prepared: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
