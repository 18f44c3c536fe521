"""Settings and fixtures for all tests."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import signal
import tempfile

# Most of a test's time is compiling: leave out LLVM's optimiser, and share compiled programs among
# tests and processes. Set before JAX starts, and passed on to the commands that tests start.
_quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_quick += " --xla_cpu_parallel_codegen_split_count=1"  # both cores have tests of their own
if importlib.metadata.version("jaxlib") < "0.11":  # a third less; XLA stops at an unknown flag
    _quick += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _quick)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's workers get it from the first
    _cache = tempfile.mkdtemp(prefix="preqn_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tracing and lowering take the rest: store no Python stack with every operation, and do not search
# millions of living objects for garbage whenever 700 new ones are made.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(200_000, 50, 100)

import jax
import pytest

import experiments  # noqa: F401  (the binaries' CPU threads)

jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("NO_SKIPS"):  # `make extras-test`, where a missing package is a failure
    pytest.importorskip = lambda name, *_, **__: importlib.import_module(name)  # pyright: ignore
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it


@pytest.fixture
def compiled():
    """The names of the functions that JAX compiles, or takes from its cache on disk, during the
    test.
    """
    found = []

    def listen(event: str, seconds: float, **of):
        if event.endswith("backend_compile_duration"):
            found.append(of.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def x64():
    """Float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs each test in a folder of its own: none may depend on the current one, or litter it."""
    monkeypatch.chdir(tmp_path)
