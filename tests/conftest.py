"""What holds for the whole suite: where compiled programs are kept, absl's flags, memory, speed."""

import os
import shutil
import tempfile
from pathlib import Path

# Programs are compiled once for all workers and for all processes that tests start. The folder is
# made by the first process of the session; workers, and what they start, inherit its name.
SESSION = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    SESSION = tempfile.mkdtemp(prefix="flowmatch_jax_tests_")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": SESSION,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
elif "NPROC" not in os.environ:
    # XLA's threads: as many as there are processors to each worker.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["NPROC"] = str(max(1, len(os.sched_getaffinity(0)) // workers))

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

# pytest does not parse absl's flags; temporary folders of absltest need them parsed.
flags.FLAGS.mark_as_parsed()

TESTS = Path(__file__).parent
# The longest files, which begin first so that no worker is left with one of them at the end.
LONGEST = (
    "end_to_end/survival_test.py",
    "end_to_end/run_test.py",
    "end_to_end/scale_test.py",
    "end_to_end/data_test.py",
    "end_to_end/conditional_test.py",
)


def pytest_unconfigure():
    if SESSION is not None:
        shutil.rmtree(SESSION, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Longest files first; the order within a file stays."""
    rank = {str(TESTS / name): i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """Compiled programs of a file are of no use to the next, and fill memory."""
    yield
    jax.clear_caches()
