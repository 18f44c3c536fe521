"""The kernel between two sets of inputs, block by block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import ntk
from zoo import ZOO
from zoo_base import BATCH, draw, jit


@pytest.mark.parametrize(
    "method, block", [("structured", 1), ("structured", 3), ("jacobian", 4), ("structured", 100)]
)
def test_rectangular_kernel_does_not_depend_on_the_block(method, block, x64):
    """7 rows and 5 columns: blocks of 3 and 4 divide neither, and 100 is larger than both."""
    q, params, (x,) = ZOO["mlp_2_tanh_bias"]("float64")
    x, y = jnp.asarray(draw(1, 7, 5)), x[:5]
    phi_rows, phi_columns = (
        oracles.mlp(oracles.layers_of(params), "tanh", rows)[1] for rows in (x, y)
    )

    @jit
    def run(params, x, y):
        options = {"method": method, "block": block}
        return ntk.kernel(q, params, (x,), (y,), **options), ntk.kernel(q, params, (x,), **options)

    rectangle, square = run(params, x, y)
    assert rectangle.shape == (7, 5)
    assert oracles.relative_error(rectangle, oracles.kernel(phi_rows, phi_columns)) < 1e-12
    assert oracles.relative_error(square, oracles.kernel(phi_rows)) < 1e-12


@pytest.mark.parametrize(
    "name", ["set_of_11", "ensemble_over_positions", "tree_of_inputs", "convolutions"]
)
def test_kernel_equals_the_gram_of_linearize(name):
    q, params, inputs = ZOO[name]("float32")
    columns = jax.tree.map(lambda leaf: leaf[1:5], inputs)

    @jit
    def run(params):
        gram = ntk.linearize(q, params, inputs, method="jacobian").gram
        return gram, ntk.kernel(q, params, inputs, columns, block=4)

    gram, got = run(params)
    assert oracles.relative_error(got, gram[:, 1:5]) < 1e-5


def test_kernel_under_vmap_over_seeds_equals_a_loop():
    q, params, inputs = ZOO["mlp_2_tanh_bias"]("float32")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    one = partial(ntk.kernel, q, xs=inputs, block=4)
    together, one = jit(jax.vmap(lambda p: one(p)))(stacked), jit(one)
    for seed in range(2):
        alone = one(jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked))
        assert oracles.relative_error(together[seed], alone) < 1e-5


def test_blocks_outside_of_jit_are_compiled_once(compiled):
    """A program for each call would be kept in memory for as long as the process lives."""
    q, params, (x,) = ZOO["mlp_2_tanh_bias"]("float32")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    first = ntk.kernel(q, params, (x,), block=3)
    compiled.clear()
    again, other = (ntk.kernel(q, p, (x,), block=3) for p in (params, doubled))
    assert not compiled
    assert (first == again).all() and not jnp.allclose(first, other)
    assert oracles.relative_error(jit(partial(ntk.kernel, q, block=3))(params, (x,)), first) < 1e-5


def test_blocks_under_jit_are_one_loop():
    """Unrolled, the program of 10,000 examples would be of 1,600 parts."""
    q, params, (x,) = ZOO["mlp_2_tanh_bias"]("float32")
    sizes = {
        len(str(jax.make_jaxpr(partial(ntk.kernel, q, block=block))(params, (x,))))
        for block in (1, 2)
    }
    assert max(sizes) < 1.2 * min(sizes)


def test_duplicate_rows_have_equal_rows_of_the_kernel():
    q, params, inputs = ZOO["mlp_2_tanh_bias"]("float32")
    doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), inputs)
    gram = jit(lambda p, x: ntk.linearize(q, p, x).gram)(params, doubled)
    assert oracles.relative_error(gram[:BATCH], gram[BATCH:]) < 1e-6
    assert (
        np.linalg.matrix_rank(np.asarray(gram, np.float64), tol=1e-5 * float(gram.max())) <= BATCH
    )
