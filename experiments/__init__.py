"""Command-line experiments: the only package with flags, progress bars and figures. Its modules are
the commands; what they share lies in kit (flags, files, figures, plans), judge (what the numbers of
runs say) and bench (timing).

Importing it sets, before JAX starts, environment variables that suit the small networks of this
field on a CPU. Products of 256 x 256 are too small to share between threads, the LAPACK threads of
the K-solve wake up slower than they solve, and XLA by default leaves half of an AVX-512 register
unused. So each core is made a device of its own, and the seeds of a run are divided among these
devices (`training.loop`). A computation runs in the thread that calls it: handing an evaluation of
the policy to another thread takes longer than the policy itself. Batched LAPACK calls of two
devices wait for each other in XLA's pool of threads, for ever if it has no more threads than cores:
the solves of this project make no such calls (`preqn_jax.solve`), and for those of others `NPROC`
gives the pool twice as many threads. A process with one core gets one thread, as more get in each
other's way. docs/results/performance.md has the measurements. GPU memory is taken as it is needed,
and not three quarters of it at the start. Compiled programs are kept for the next process in the
user's cache folder, apart for each kind of machine. Variables that the environment already sets are
left alone, but figures are drawn without a display.

A command that gets Ctrl-C while it is being imported ends silently. A standard stream that is
closed is opened on /dev/null: the next file to be opened would take its number, and XLA would write
its warnings into that file.
"""

import contextlib
import hashlib
import os
import platform
import signal
import sys
from collections.abc import Iterator

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `flags.run` puts it back
for _stream in range(3):
    try:
        os.fstat(_stream)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def threads(cores: int) -> int:
    """The number of threads that XLA should have for a process with so many cores."""
    return 2 * cores if cores > 1 else 1


_BEFORE = dict(os.environ)
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
_XLA_FLAGS = {
    "xla_cpu_multi_thread_eigen": "false",
    "xla_cpu_prefer_vector_width": "512",
    "xla_force_host_platform_device_count": str(_cores),
}
XLA_FLAGS_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [XLA_FLAGS_GIVEN, *(f"--{k}={v}" for k, v in _XLA_FLAGS.items() if k not in XLA_FLAGS_GIVEN)]
).strip()
os.environ["MPLBACKEND"] = "Agg"  # commands need no display, whatever others may have chosen
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
NPROC_GIVEN = os.environ.get("NPROC", "")
if NPROC_GIVEN and not (NPROC_GIVEN.isascii() and NPROC_GIVEN.isdecimal() and int(NPROC_GIVEN)):
    sys.exit(f"error: NPROC is {NPROC_GIVEN!r}, but it must be a number of threads, as in NPROC=2")
os.environ["NPROC"] = NPROC_GIVEN or str(threads(_cores or 1))


def _cache() -> str:
    """The folder of compiled programs: one for each kind of CPU, as they run on that kind alone."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    kind = platform.machine()
    try:
        with open("/proc/cpuinfo", "rb") as file:  # its flags are the same line for every core
            lines = sorted({line for line in file if line.startswith((b"flags", b"model name"))})
            kind += "-" + hashlib.sha256(b"".join(lines)).hexdigest()[:12]
    except OSError:
        kind += "-" + platform.node()
    return os.path.join(home, "preqn_jax", "xla", kind)


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache()
    # In bytes; the oldest go first. A folder that the user has set gets no bound: where JAX has
    # written to it without one, it does not know how old the files are, warns, and keeps nothing.
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**31))

try:
    import jax  # NumPy, which it imports, reads the variables
except ValueError as _error:  # of a variable of JAX's own
    sys.exit(f"error: JAX does not start: {_error}; unset that variable, or set it otherwise")

jax.config.update("jax_cpu_enable_async_dispatch", False)
_SET = {name: value for name, value in os.environ.items() if _BEFORE.get(name) != value}


def given() -> dict[str, str]:
    """The environment variables without those that this module, and JAX, set for this machine:
    processes on another machine choose their own.
    """
    rest = {name: value for name, value in os.environ.items() if _SET.get(name) != value}
    mine = {"XLA_FLAGS": XLA_FLAGS_GIVEN, "NPROC": NPROC_GIVEN}
    return {**{name: value for name, value in mine.items() if value}, **rest}


@contextlib.contextmanager
def as_given() -> Iterator[None]:
    """Within this context the environment variables are those of `given`, for code that passes them
    to other machines.
    """
    before, inside = dict(os.environ), given()
    try:
        for name in before.keys() - inside.keys():
            del os.environ[name]
        os.environ.update(inside)
        yield
    finally:
        os.environ.update(before)
