"""The backtracking search and the cosine of its criterion (Eq. 24)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import linesearch


def below(threshold):
    """Accepts scales up to a threshold; what it measures is the scale itself."""
    return lambda scale: (scale <= threshold, scale)


@pytest.mark.parametrize(
    "decay, threshold", [(0.5, 1.0), (0.5, 0.5), (0.5, 0.3), (0.9, 0.6), (0.1, 0.011)]
)
def test_takes_the_first_scale_that_is_accepted(decay, threshold):
    candidates = [1.0]
    while candidates[-1] > threshold:
        candidates.append(candidates[-1] * decay)
    for search in (
        linesearch.backtrack,
        jax.jit(linesearch.backtrack, static_argnums=0, static_argnames=("decay", "max_steps")),
    ):
        found = search(below(threshold), decay=decay, max_steps=12)
        np.testing.assert_allclose(
            found.scale, candidates[-1], rtol=1e-6
        )  # a product of float32 numbers
        assert found.accepted
        assert found.backtracks == len(candidates) - 1
        assert found.aux == found.scale


def test_keeps_no_better_candidate_in_mind():
    """It takes the first accepted candidate, even if a longer step was rejected and a shorter one
    would be accepted too.
    """
    found = linesearch.backtrack(lambda scale: ((scale == 0.25) | (scale == 0.0625), 10 * scale))
    assert found.scale == 0.25 and found.backtracks == 2 and found.aux == 2.5


@pytest.mark.parametrize("max_steps", [1, 2, 7])
def test_a_failed_search_takes_a_zero_step_and_says_so(max_steps):
    found = linesearch.backtrack(lambda scale: (scale < 0, scale), max_steps=max_steps)
    assert found.scale == 0
    assert not found.accepted
    assert found.backtracks == max_steps
    assert found.aux == 0.5 ** (max_steps - 1)  # the last candidate tried


@pytest.mark.parametrize("max_steps", [1, 5])
def test_the_bound_counts_candidates(max_steps):
    """The last candidate may still be accepted; no further one is tried."""
    last = 0.5 ** (max_steps - 1)
    found = linesearch.backtrack(below(last), max_steps=max_steps)
    assert found.accepted and found.scale == last and found.backtracks == max_steps - 1
    assert not linesearch.backtrack(below(last / 2), max_steps=max_steps).accepted


def test_a_nan_is_never_accepted():
    found = linesearch.backtrack(lambda scale: (scale * jnp.nan >= -1, scale))
    assert not found.accepted and found.scale == 0


def test_each_member_of_a_vmap_searches_for_itself():
    thresholds = jnp.asarray([2.0, 0.5, 0.01, -1.0])
    together = jax.jit(jax.vmap(lambda t: linesearch.backtrack(below(t), max_steps=8)))(thresholds)
    assert together.scale.tolist() == [1.0, 0.5, 0.5**7, 0.0]
    assert together.accepted.tolist() == [True, True, True, False]
    assert together.backtracks.tolist() == [0, 1, 7, 8]
    assert together.aux[:3].tolist() == together.scale[:3].tolist()


def test_types_do_not_depend_on_the_outcome():
    shapes = [
        jax.tree.map(lambda x: (x.shape, x.dtype), linesearch.backtrack(below(t)))
        for t in (1.0, -1.0)
    ]
    assert (
        shapes[0]
        == shapes[1]
        == (((), jnp.float32), ((), bool), ((), jnp.int32), ((), jnp.float32))
    )


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \(0, 1\), got"):
        linesearch.backtrack(below(1.0), decay=decay)


@pytest.mark.parametrize("max_steps", [0, -1])
def test_max_steps_out_of_range(max_steps):
    with pytest.raises(ValueError, match=f"max_steps must be at least 1, got {max_steps}"):
        linesearch.backtrack(below(1.0), max_steps=max_steps)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25, 1e37])
def test_cosine_equals_numpy(seed, scale):
    """With scales whose squares overflow or vanish in float32."""
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(-1, 1, size=20).astype(np.float32) for _ in range(2))
    a = a * np.float32(scale)
    got = jax.jit(linesearch.cosine)(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(
        got, oracles.cosine(a, b), atol=3e-7
    )  # 20 float32 products, each of at most 1
    np.testing.assert_allclose(linesearch.cosine(jnp.asarray(b), jnp.asarray(a)), got, atol=3e-7)
    np.testing.assert_allclose(linesearch.cosine(jnp.asarray(a), jnp.asarray(-a)), -1, atol=3e-7)
    negative = jnp.asarray(-np.abs(a))  # the largest entry is not the largest in size
    for cos in (
        linesearch.cosine(negative, jnp.asarray(b)),
        linesearch.cosine(jnp.asarray(b), negative),
    ):
        np.testing.assert_allclose(cos, oracles.cosine(negative, b), atol=3e-7)


def test_cosine_in_float64(x64):
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    got = linesearch.cosine(jnp.asarray(a), jnp.asarray(b))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, oracles.cosine(a, b), atol=1e-15)


def test_cosine_with_a_zero_vector_is_zero():
    a, zero = jnp.arange(1.0, 4.0), jnp.zeros(3)
    assert (
        linesearch.cosine(a, zero)
        == linesearch.cosine(zero, a)
        == linesearch.cosine(zero, zero)
        == 0
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("other", [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_cosine_with_a_nan_or_an_infinity_is_nan(bad, other):
    a, b = jnp.asarray([1.0, bad, 2.0]), jnp.asarray(other)
    for cos in (linesearch.cosine(a, b), linesearch.cosine(b, a), linesearch.cosine(a, a)):
        assert jnp.isnan(cos)
        assert not cos >= -0.999


@pytest.mark.parametrize("threshold", [1.0, 0.3, 0.0])
def test_outside_of_jit_a_search_compiles_once(threshold, compiled):
    linesearch.backtrack(below(threshold), max_steps=4)
    compiled.clear()
    linesearch.backtrack(below(threshold), max_steps=4)
    assert not compiled
