"""Command-line experiments; the only room that knows flags, progress bars and pictures.

Importing it chooses how the CPU runs the networks of this field, before JAX starts: products of 256 x 256 are too small to share
between threads, the LAPACK threads of the K-solve wake up slower than they solve, and XLA leaves half of an AVX-512 register
unused. BUILD.md, "Performance", has the figures. Whatever is already set wins.
"""

import os

_XLA_FLAGS = {"xla_cpu_multi_thread_eigen": "false", "xla_cpu_prefer_vector_width": "512"}
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(f"--{k}={v}" for k, v in _XLA_FLAGS.items() if k not in _given)]).strip()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
