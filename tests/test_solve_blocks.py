"""Cholesky by blocks, for more rows than LAPACK gets at once on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solve import BATCH, DAMPING, JITTED, SOLVERS, delta_for, jit, positive, run

import oracles
from preqn_jax import solve

MANY = 230


@pytest.fixture(scope="module")
def many():
    """K of 230 inputs in 60 directions, Delta, and the damped solution in float64."""
    phi = np.random.default_rng(0).normal(size=(60, MANY))
    gram, delta = phi.T @ phi, delta_for(batch=MANY)
    damped = gram + DAMPING * np.mean(np.diag(gram)) * np.eye(MANY)
    return gram, delta, np.linalg.solve(damped, delta)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-3), ("float64", 1e-11)])
def test_many_rows_are_solved_as_exactly_as_few(dtype, error, many, request):
    """In float32 the error is eps times the condition of the damped K, 1e4."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    gram, delta, expected = many
    z, info = run("cholesky_damped", gram, delta, dtype)
    assert oracles.relative_error(z, expected) < error and info.finite and z.dtype == dtype


def test_many_rows_under_vmap_are_a_loop_and_a_bad_one_spoils_no_other(many, x64):
    gram, delta, expected = many
    grams = jnp.stack([gram, -gram, 2 * gram])
    z, info = jit(jax.vmap(solve.cholesky(DAMPING)))(grams, jnp.stack([delta] * 3))
    assert info.finite.tolist() == [True, False, True] and jnp.isnan(z[1]).all()
    assert oracles.relative_error(z[0], expected) < 1e-11
    assert oracles.relative_error(z[2], expected / 2) < 1e-11


@pytest.mark.parametrize("row", [3, MANY - 3])
def test_many_rows_that_cannot_be_factored_are_reported(row):
    """Whether the first block fails, or what is left after it."""
    gram = np.eye(MANY)
    gram[row, row] = -1
    z, info = run("cholesky", gram, np.ones(MANY), jnp.float32)
    assert not info.finite and jnp.isnan(z[: row + 1]).all()


def test_a_solve_of_many_rows_is_differentiable(many, x64):
    """d(g . z)/d delta = (K + c)^-1 g."""
    gram, delta, expected = many
    g = np.random.default_rng(5).normal(size=MANY)
    pull = jax.grad(lambda d: g @ SOLVERS["cholesky_damped"][0](jnp.asarray(gram), d)[0])
    pulled = np.asarray(jit(pull)(delta))
    assert abs(pulled @ delta / (g @ expected) - 1) < 1e-9


@pytest.mark.parametrize("batch", [97, 256, 1000])
def test_no_call_of_lapack_is_large_enough_to_wake_its_threads(batch):
    """For a factorisation of about 128 rows, and for 1,024 numbers on the right-hand side, OpenBLAS
    wakes its other threads, which compete with XLA's for the cores.
    """
    shapes = jax.ShapeDtypeStruct((batch, batch), jnp.float32), jax.ShapeDtypeStruct((batch,), "f4")
    text = jax.jit(solve.cholesky()).lower(*shapes).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line or "blas_" in line]
    factored = [line for line in calls if "potrf" in line]
    assert factored
    for line in calls:
        *_, result = re.findall(r"tensor<(\d+)(?:x(\d+))?xf32>", line.rpartition("->")[2])[:1]
        rows, columns = int(result[0]), int(result[1] or 1)
        assert rows <= 96 if line in factored else rows * columns < 1024


SIDE_BY_SIDE = """
import sys
import jax
from preqn_jax import solve
method, members = getattr(solve, sys.argv[1]), int(sys.argv[2])
rows = jax.random.normal(jax.random.key(0), (members, 256, 300))
gram, delta = rows @ rows.transpose(0, 2, 1), rows[:, :, 0]
split = jax.sharding.PartitionSpec("device")
mesh = jax.make_mesh((jax.local_device_count(),), ("device",))
gram, delta = jax.device_put((gram, delta), jax.sharding.NamedSharding(mesh, split))
solves = jax.jit(
    jax.shard_map(jax.vmap(method()), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
)
for _ in range(int(sys.argv[3])):
    z, info = jax.block_until_ready(solves(gram, delta))
print(bool(info.finite.all()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices", "threads", "members", "calls"),
    [
        ("cholesky", 1, 2, 35, 1000),
        ("cholesky", 2, 1, 4, 200),
        ("cholesky", 2, 2, 4, 200),
        ("eigh", 2, 1, 4, 20),
        ("lstsq", 2, 1, 4, 20),
    ],
)
def test_many_solves_side_by_side_do_not_wait_for_one_another_for_ever(
    method, devices, threads, members, calls
):
    """Batched LAPACK calls each held one of XLA's threads and waited for another, in one program on
    two devices.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "NPROC": str(threads)}
    env |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", SIDE_BY_SIDE, method, str(members), str(calls)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert out.stdout == "True\n"


@pytest.mark.parametrize("method", ["cholesky", "eigh", "lstsq"])
def test_no_call_of_lapack_is_for_a_batch(method):
    """The parts of a batched call are given to threads that may all be waiting for such parts."""
    shapes = jax.ShapeDtypeStruct((3, 256, 256), "f4"), jax.ShapeDtypeStruct((3, 256), "f4")
    text = jax.jit(jax.vmap(getattr(solve, method)())).lower(*shapes).as_text()
    calls = [line for line in text.splitlines() if "@lapack_" in line or "@blas_" in line]
    assert calls and not any("tensor<3x" in line for line in calls)


def test_the_blocks_are_for_the_cpu_alone():
    gram, delta = jax.ShapeDtypeStruct((256, 256), "f4"), jax.ShapeDtypeStruct((256,), "f4")
    exported = jax.export.export(jax.jit(solve.cholesky()), platforms=["cuda"])(gram, delta)
    assert "tensor<96x96xf32>" not in exported.mlir_module()


@pytest.mark.parametrize("make", [solve.cholesky, lambda d: solve.cg(damping=d)])
def test_a_damping_of_more_digits_than_k_solves_in_those_of_k(make, x64):
    gram, delta = np.float32(positive()), np.arange(BATCH, dtype=np.float32)
    z, info = make(np.float64(DAMPING))(gram, delta)
    again, _ = jax.jit(lambda d: make(d)(gram, delta))(jnp.float64(DAMPING))
    assert z.dtype == again.dtype == info.damping.dtype == jnp.float32
    np.testing.assert_allclose(again, z, rtol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", [2.0**66, 2.0**-66])
def test_no_size_of_delta_overflows_or_vanishes(name, size):
    """Its square would, in float32. Scaling by a power of two changes no digit."""
    gram, delta = np.float32(positive()), np.float32(np.arange(1, BATCH + 1))
    z, info = JITTED[name](gram, delta)
    huge, same = JITTED[name](gram, size * delta)
    np.testing.assert_allclose(huge / size, z, rtol=1e-6)
    assert same.finite and info.residual > 0
    np.testing.assert_allclose(same.residual, info.residual, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: solve.cholesky(-1.0), "damping must not be negative, got -1.0"),
        (lambda: solve.cg(damping=-1.0), "damping must not be negative, got -1.0"),
        (lambda: solve.cg(max_steps=0), "max_steps must be at least 1, got 0"),
        (lambda: solve.cg(tol=-1.0), "tol must not be negative, got -1.0"),
        (lambda: solve.eigh(1.0), "rcond is a share of the largest eigenvalue, in [0, 1), got 1.0"),
        (lambda: solve.lstsq(-0.1), "the largest eigenvalue, in [0, 1), got -0.1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_as_a_solve_is_made(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()
