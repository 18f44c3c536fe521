"""What numbers were made on, for the files that hold them."""

import os

import jax


def device() -> str:
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"


def machine() -> str:
    """All that a speed depends on, in words."""
    xla_flags = os.environ["XLA_FLAGS"]
    return f"{device()}, {os.cpu_count()} cores, jax {jax.__version__}, XLA_FLAGS={xla_flags!r}"
