"""What every test shares."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import signal
import tempfile

# Most of what a test costs is compiling: leave LLVM's optimiser out, and share what was compiled
# among tests and processes. Before JAX starts, and for the commands that tests start.
_quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_quick += " --xla_cpu_parallel_codegen_split_count=1"  # both cores have tests of their own
if importlib.metadata.version("jaxlib") < "0.11":  # a third less; XLA stops at a flag it has not
    _quick += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _quick)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's processes have it from the first
    _cache = tempfile.mkdtemp(prefix="preqn_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tracing and lowering are the other half: no stack of Python's frames in every operation's
# location, and no search for garbage among millions of living objects at every 700 new ones.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(200_000, 50, 100)

import jax
import pytest

import experiments  # noqa: F401  (the binaries' CPU threads)

jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("NO_SKIPS"):  # `make extras-test`: what is missing there is a fault
    pytest.importorskip = lambda name, *_, **__: importlib.import_module(name)  # pyright: ignore
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it


@pytest.fixture
def compiled():
    """The names of what JAX compiled while it is looked at, or took from its cache on disk."""
    found = []

    def listen(event: str, seconds: float, **of):
        if event.endswith("backend_compile_duration"):
            found.append(of.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Tests run in a folder of their own: nothing may depend on, or litter, the current one."""
    monkeypatch.chdir(tmp_path)
