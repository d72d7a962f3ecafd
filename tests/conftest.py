"""What holds for the whole suite: where compiled programs are kept, absl's flags, memory, speed."""

import ctypes
import functools
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Programs are compiled once for all workers and for all processes that tests start. The folder is
# made by the first process of the session; workers, and what they start, inherit its name.
SESSION = None
# Tests compile many programs and run each of them briefly: optimisations do not pay.
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if version("jaxlib").startswith("0.10."):  # XLA ends the process at a flag that it does not know
    # MLIR's emitters take two thirds of the time of a compilation.
    QUICKLY_COMPILED += ("--xla_cpu_use_fusion_emitters=false",)
if "PYTEST_XDIST_WORKER" not in os.environ:
    SESSION = tempfile.mkdtemp(prefix="flowmatch_jax_tests_")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": SESSION,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # A twentieth of the time goes into the line numbers of compiled operations.
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *QUICKLY_COMPILED]).strip(),
    }
elif "NPROC" not in os.environ:
    # XLA's threads: as many as there are processors to each worker.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["NPROC"] = str(max(1, len(os.sched_getaffinity(0)) // workers))

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

import flowmatch_jax  # noqa: E402, F401 (before a test imports diffrax: see its EQX_ON_ERROR)

# Tracing makes many objects and few cycles: a tenth of the time went into looking for garbage among
# all that is imported. Each file ends with a collection.
gc.set_threshold(100_000, 50, 100)

# pytest does not parse absl's flags; temporary folders of absltest need them parsed.
flags.FLAGS.mark_as_parsed()

TESTS = Path(__file__).parent
# The longest files, which begin first so that no worker is left with one of them at the end.
LONGEST = (
    "end_to_end/run_test.py",
    "end_to_end/scale_test.py",
    "notebooks_test.py",
    "likelihood_test.py",
    "solvers_test.py",
    "end_to_end/survival_test.py",
    "end_to_end/data_test.py",
    "objectives_test.py",
    "runtime/mesh_test.py",
    "networks/unet_test.py",
)
# What the mathematics is held against, without a process, a training or a large program: -m fast.
FAST = (
    "arrays_test.py",
    "couplings_test.py",
    "flow_maps_test.py",
    "marginals_test.py",
    "paths_test.py",
    "pixels_test.py",
    "predictions_test.py",
    "times_test.py",
    "data/conditioning_test.py",
    "data/toy2d_test.py",
    "metrics/frechet_test.py",
    "metrics/inception_score_test.py",
    "metrics/kid_test.py",
    "metrics/precision_recall_test.py",
    "metrics/similarity_test.py",
    "networks/mlp_test.py",
    "runtime/errors_test.py",
    "sampling/ancestral_test.py",
    "training/optimizer_test.py",
)


def pytest_ignore_collect(collection_path, config):
    """For -m fast the other files are not even imported."""
    if config.option.markexpr == "fast" and collection_path.name.endswith("_test.py"):
        return collection_path.relative_to(TESTS).as_posix() not in FAST or None
    return None


def pytest_unconfigure():
    if SESSION is not None:
        shutil.rmtree(SESSION, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark what is fast; the longest files first, the order within each as it is."""
    assert all((TESTS / name).is_file() for name in (*FAST, *LONGEST))
    for item in items:
        if item.path.relative_to(TESTS).as_posix() in FAST:
            item.add_marker(pytest.mark.fast)
    rank = {TESTS / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _weights_are_read_once():
    """Most experiments with images load this net; one is as good as the next."""
    from flowmatch_jax.metrics.features import extractors

    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(extractors.load_efficientnet_lite0)
        patch.setattr(extractors, "load_efficientnet_lite0", once)
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """Compiled programs of a file are of no use to the next, and fill memory."""
    yield
    jax.clear_caches()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps what is freed: 1.7 GB after likelihood_test.py
        libc.malloc_trim(0)
