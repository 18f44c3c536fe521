"""What every test shares."""

import experiments  # noqa: F401  isort: skip  (the binaries' CPU threads, chosen before JAX starts)
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Tests run in a folder of their own: nothing may depend on, or litter, the current one."""
    monkeypatch.chdir(tmp_path)
