"""Command-line experiments; the only room that knows flags, progress bars and pictures.

Importing it chooses CPU threads for the networks of this field, before JAX starts: products of 256 x 256 are too small to share
between threads, and the LAPACK threads of the K-solve wake up slower than they solve. BUILD.md, "Performance", has the
figures. A variable that is already set wins.
"""

import os

_EIGEN = "xla_cpu_multi_thread_eigen"
if _EIGEN not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_EIGEN}=false".strip()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
