"""Wrong arguments for finite problems, and the messages they get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import tabular
from tabular_cases import A, N, S, jit, kernels, one, random_mdps

pytestmark = pytest.mark.usefixtures("x64")


GOOD = tabular.MDP(np.full((S, A, S), 1 / S), np.zeros((S, A)), 0.9)
RHO, KERNEL = np.full((S, A), 1 / N), np.eye(N)


def edited(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("mdp", "words"),
    [
        (
            GOOD._replace(transition=np.ones((S, A))),
            r"transition has the shape \(3, 2\), expected \[S, A, S\]",
        ),
        (GOOD._replace(transition=np.ones((S, A, S + 1))), "transition has the shape"),
        (
            GOOD._replace(transition=edited(GOOD.transition, (1, 0, 2), 0.5)),
            r"transition\[1, 0\] sums to 1.16667, expected 1",
        ),
        (
            GOOD._replace(transition=edited(GOOD.transition, (1, 0), [-0.5, 0.5, 1])),
            "transition has the entry -0.5, expected",
        ),
        (
            GOOD._replace(transition=edited(GOOD.transition, (2, 1, 0), np.nan)),
            r"transition holds .* at \[2, 1, 0\]",
        ),
        (
            GOOD._replace(reward=np.zeros((A, S))),
            r"reward has the shape \(2, 3\), expected \(3, 2\) or \(3, 2, 3\)",
        ),
        (
            GOOD._replace(reward=edited(GOOD.reward, (0, 1), np.inf)),
            r"reward holds .* at \[0, 1\]",
        ),
        (
            GOOD._replace(reward=np.full((S, A), "1")),
            "reward holds a value that is not a finite number",
        ),
        (GOOD._replace(gamma=1.0), r"gamma is 1.0, expected a number in \[0, 1\)"),
        (GOOD._replace(gamma=-0.1), "gamma is -0.1"),
        (GOOD._replace(gamma=float("nan")), "gamma is nan"),
        (GOOD._replace(gamma=np.ones(2)), "gamma is"),
    ],
)
def test_check_names_what_is_wrong_with_an_mdp(mdp, words):
    with pytest.raises(ValueError, match=words):
        tabular.check(mdp)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0.0, expected a positive number"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"rho": np.ones(N) / N}, r"rho has the shape \(6,\), expected \(3, 2\)"),
        ({"rho": RHO / 2}, "rho sums to 0.5, expected 1"),
        ({"rho": edited(RHO, (0, slice(None)), [-0.1, 0.1 + 1 / 3])}, "rho has the entry -0.1"),
        ({"rho": edited(RHO, (2, 1), np.nan)}, r"rho holds .* at \[2, 1\]"),
        ({"kernel": np.eye(N)[:, 1:]}, r"kernel has the shape \(6, 5\), expected \(6, 6\)"),
        ({"kernel": np.eye(S)}, r"kernel has the shape \(3, 3\), expected \(6, 6\)"),
        (
            {"kernel": edited(KERNEL, (1, 4), 0.25)},
            r"kernel is not symmetric: entry \[1, 4\] is 0.25 and \[4, 1\] is 0",
        ),
        ({"kernel": edited(KERNEL, (3, 3), np.nan)}, r"kernel holds .* at \[3, 3\]"),
        (
            {"kernel": edited(KERNEL, (3, 3), -2)},
            "kernel has the eigenvalue -2, expected none below 0",
        ),
    ],
)
def test_check_update_names_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        tabular.check_update(GOOD, **{"alpha": 0.1, **arguments})


@pytest.mark.parametrize("off", [1e-7, -1e-7])
def test_what_rounding_cannot_explain_is_refused(off):
    with pytest.raises(ValueError, match="sums to"):
        tabular.check(GOOD._replace(transition=edited(GOOD.transition, (0, 0, 0), 1 / S + off)))
    for arguments in (
        {"rho": edited(RHO, (0, 0), 1 / N + off)},
        {"kernel": edited(KERNEL, (1, 4), off)},
        {"kernel": edited(KERNEL, (3, 3), -abs(off))},
    ):
        with pytest.raises(ValueError, match="sums to|symmetric|eigenvalue"):
            tabular.check_update(GOOD, 0.1, **arguments)


def test_what_is_right_passes_in_float32_and_as_a_singular_kernel():
    for dtype in (np.float32, np.float64):
        mdps = random_mdps(16, 20, 40, 3)
        for k in range(20):
            got = one(tabular.MDP(*(np.asarray(field, dtype) for field in mdps)), k)
            assert got.transition.dtype == np.float64
        tabular.check_update(GOOD, 0.1, RHO.astype(dtype), kernels(16, 1, 2)[0].astype(dtype))


def test_shapes_are_checked_under_tracing_too():
    q = jnp.zeros((S, A))
    for call in (
        lambda: tabular.backup(GOOD, q.T),
        lambda: tabular.u2(GOOD, q, 0.1, RHO.ravel()),
        lambda: tabular.u(GOOD, q, 0.1, RHO, KERNEL[:S, :S]),
        lambda: tabular.policy_backup(GOOD, jnp.zeros(S), q),
        lambda: tabular.modulus(GOOD, 0.1, RHO, KERNEL[0]),
    ):
        with pytest.raises(ValueError, match="has the shape .* expected"):
            jit(call)()


def test_whole_numbers_are_numbers():
    mdp = tabular.check(tabular.MDP(np.ones((1, 2, 1), int), np.array([[0, 1]]), 0.5))
    rho, start = jnp.full((1, 2), 0.5), jnp.zeros((1, 2), int)
    learned = tabular.q_learning(mdp, start, rho, jax.random.key(0), 2000)
    np.testing.assert_allclose(learned.q, [[1, 2]], atol=1e-2)
    np.testing.assert_allclose(tabular.value_iteration(mdp).q, [[1, 2]], atol=1e-4)
    path = tabular.iterate(lambda q: tabular.u1(mdp, q, 0.5), start, 1)
    np.testing.assert_allclose(path[1], [[0, 0.5]])
