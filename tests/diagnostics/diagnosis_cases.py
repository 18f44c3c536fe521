"""Cases for `diagnose`, and a formula for each of its numbers: NumPy in float64, written from
`GLOSSARY`.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

import oracles
from diagnosis_critics import ACT, BATCH, MAKES, OBS, Make
from preqn_jax import diagnostics
from preqn_jax.diagnostics import diagnose
from preqn_jax.types import Transition


class Case(NamedTuple):
    """The arguments of a call of `diagnose`. Theta and `options["moved"]` are vectors; `options`
    has only the arguments that are given.
    """

    make: Make
    theta: np.ndarray
    batch: Transition
    next_action: np.ndarray
    options: dict[str, Any]

    def replace(self, **options):
        """This case with other options, or other parts of the batch."""
        parts = {name: options.pop(name) for name in Transition._fields if name in options}
        fields = {name: options.pop(name) for name in Case._fields if name in options}
        changed = self._replace(**fields)
        return changed._replace(
            batch=changed.batch._replace(**parts), options={**self.options, **options}
        )


def draw_case(make, seed=0, size=BATCH, **options):
    """A case with random parameters and transitions. Some transitions are terminal, and the largest
    reward is negative.
    """
    rng = np.random.default_rng(seed)
    theta = [
        rng.normal(size=shape) / np.sqrt(shape[0] if len(shape) > 1 else 4) for shape in make.shapes
    ]
    obs, next_obs = rng.normal(size=(2, size, OBS))
    action, next_action = np.tanh(rng.normal(size=(2, size, ACT)))
    reward, discount = rng.uniform(-1, 1, size=size), np.ones(size)
    reward[3], discount[[1, 4, 5]] = -1.5, 0
    return Case(
        make,
        oracles.theta(theta),
        Transition(obs, action, reward, discount, next_obs),
        next_action,
        options,
    )


def some_returns(seed):
    """Five pairs that are not in the batch, and their returns, of either sign."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(5, OBS)), np.tanh(rng.normal(size=(5, ACT)))), np.array(
        [1.0, -2.0, 4.0, 3.0, -0.5]
    )


def some_bonus(seed):
    """A bonus of either sign, more often positive. The largest one follows a terminal transition,
    and so counts for nothing.
    """
    bonus = np.random.default_rng(seed).uniform(-0.5, 1, size=BATCH)
    bonus[[1, 4]] = 9, -9
    return bonus


def joined(case):
    """X and X*, `[N, OBS + ACT]` each."""
    return np.hstack([case.batch.obs, case.batch.action]), np.hstack(
        [case.batch.next_obs, case.next_action]
    )


def linearized(case):
    """Q, Phi and delta at X, for targets that are not given as an option."""
    x, ahead = joined(case)
    values, phi, _ = case.make(case.theta, x)
    worth = case.make(case.theta, ahead)[0] + case.options.get("bonus", 0)
    targets = case.batch.reward + case.options.get("gamma", 0.99) * case.batch.discount * worth
    return values, phi, targets - values


def updated(case, alpha, length, seed=0):
    """theta after the step of Eq. 5, and a further step of a given length in a random direction."""
    _, phi, delta = linearized(case)
    direction = np.random.default_rng(seed).normal(size=case.theta.size)
    return oracles.gradient_step(
        case.theta, phi, delta, alpha
    ) + length * direction / np.linalg.norm(direction)


def with_idle_units(case, second=1.0):
    """The case with two nearly dormant units in the first hidden layer, and one in the second; the
    second layer is scaled by `second`.
    """
    b0, w0, b1, w1, b2, w2 = case.make.leaves(case.theta)
    b0[:2], w0[:, :2], b1[4], w1[:, 4] = 0.001, 0.001 * w0[:, :2], 0.001, 0.0001
    return case.replace(theta=oracles.theta([b0, w0, second * b1, second * w1, b2, w2]))


def _moved():
    case = draw_case(MAKES["sin"], 1, gamma=0.9)
    return case.replace(moved=updated(case, 0.3, 0.3))


def _own_step():
    targets = np.random.default_rng(2).normal(size=BATCH)
    options = {
        "alpha": 0.3,
        "targets": targets,
        "reward_bound": 2.5,
        "returns": some_returns(2),
    }
    return with_idle_units(draw_case(MAKES["tanh"], 2, gamma=0.97, **options))


def _moved_and_alpha():
    """A case in which half of the targets follow terminal states, and all of Q is below zero."""
    case = draw_case(MAKES["relu"], 3, gamma=0.8, alpha=0.05, returns=some_returns(3))
    case = with_idle_units(case, second=0.02)
    case.theta[-10] = -3.0  # the bias of the output
    case = case.replace(discount=np.arange(BATCH) % 2.0)
    return case.replace(moved=updated(case, 0.1, 0.2))


CASES = {
    "moved": _moved,
    "own step": _own_step,
    "moved and alpha": _moved_and_alpha,
    "defaults": lambda: draw_case(MAKES["one hidden layer"], 4),
    "bonus": lambda: draw_case(MAKES["tanh"], 12, gamma=0.9, bonus=some_bonus(12)),
    "cost": lambda: draw_case(MAKES["relu"], 3, gamma=0.9, bonus=some_bonus(3)),
    "LayerNorm": lambda: draw_case(MAKES["LayerNorm"], 5, gamma=0.95, alpha=3.0),
    "linear": lambda: draw_case(MAKES["linear"], 6, 8, gamma=0.9, alpha=0.1),
}


def look(case, dtype="float64"):
    """The result of `diagnose` for a case, in float64 by default; its arrays are NumPy's."""
    with jax.enable_x64(dtype == "float64"):
        cast = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)
        options = dict(case.options)
        for name in {"targets", "returns", "bonus"} & set(options):
            options[name] = cast(options[name])
        if "moved" in options:
            options["moved"] = case.make.params(options["moved"], dtype)
        batch, next_action = cast((case.batch, case.next_action))
        params = case.make.params(case.theta, dtype)
        return diagnose(case.make.q, diagnostics.Case(params, batch, next_action, **options))


# --- the formulas ---------------------------------------------------------------------------------


def formulas(case, alpha=None):
    """Every number of `diagnose`, by its formula. `alpha` is the step size that the bounds are
    computed for; None for the one that the formula itself gives.
    """
    batch, options = case.batch, case.options
    x, ahead_x = joined(case)
    values, phi, hidden = case.make(case.theta, x)
    ahead_values, ahead_phi, ahead_hidden = case.make(case.theta, ahead_x)
    gamma, size = options.get("gamma", 0.99), len(values)
    bonus = options.get("bonus", np.zeros(size))
    targets = options.get("targets", batch.reward + gamma * batch.discount * (ahead_values + bonus))
    delta, k = targets - values, oracles.kernel(phi)
    others = [[j for j in range(size) if j != i] for i in range(size)]
    plain = k @ delta / size

    given = options.get("alpha", None if "moved" in options else 1e-3)
    if "moved" in options:
        moved = options["moved"]
        linear = phi.T @ (moved - case.theta)
    else:
        moved, linear = oracles.gradient_step(case.theta, phi, delta, given), given * plain
    change = case.make(moved, x)[0] - values
    fit = given if given is not None else np.linalg.lstsq(plain[:, None], linear, rcond=None)[0][0]
    alpha = fit if alpha is None else alpha

    spectrum = np.linalg.eigvalsh(k)
    excitation = gamma * batch.discount[:, None] * oracles.kernel(ahead_phi, phi) - k
    off = np.array([sum(abs(k[i, j]) for j in others[i]) for i in range(size)])
    bound = sum_of_entries(k, alpha, gamma)
    pairs = sum(delta[i] * delta[j] * k[i, j] for i in range(size) for j in others[i]) / (
        size * (size - 1)
    )
    numbers = {
        "q_mean": values.mean(),
        "q_largest": np.abs(values).max(),
        "td_error": np.abs(delta).mean(),
        "diagonal_mean": np.mean([phi[:, i] @ phi[:, i] for i in range(size)]),
        "row_ratio": np.mean(oracles.row_ratio(k)),
        "alpha": fit,
        "contraction_bound": bound,
        "overshoot_slack": min(1 - alpha * k[i, i] / size for i in range(size)),
        "generalization_slack": min(
            (1 - gamma) * k[i, i] - (1 + gamma) * off[i] for i in range(size)
        )
        / size,
        "alignment": oracles.cosine(change, delta),
        "gain": change @ delta / (delta @ delta),
        "linearization_error": np.linalg.norm(change - linear) / np.linalg.norm(linear),
        "effective_rank": np.trace(k) ** 2 / np.linalg.norm(k, "fro") ** 2,
        "condition": spectrum.max() / spectrum.min(),
        "self_excitation": np.real(np.linalg.eigvals(excitation)).max() / np.mean(np.diag(k)),
        "soft_divergence": max(
            abs(value) / attainable(np.sign(value), batch, bonus, gamma, options)
            for value in values
        ),
        "interference": pairs / np.mean(delta**2 * np.diag(k)),
        "extrapolation": weighted(ahead_values - values, batch.discount) / values.std(),
        "saturation": np.mean(np.abs(case.next_action) > 0.95),
    }
    if hidden:
        sigma = np.linalg.svd(hidden[-1], compute_uv=False)
        numbers["feature_rank"] = min(
            n for n in range(1, len(sigma) + 1) if sigma[:n].sum() >= 0.99 * sigma.sum()
        )
        activity = [np.abs(h).mean(axis=0) for h in hidden]
        idle = [unit <= 0.025 * layer.mean() for layer in activity for unit in layer]
        numbers["dormant_share"] = sum(idle) / len(idle)
        pairs = zip(hidden[-1], ahead_hidden[-1], strict=True)
        similar = np.array([oracles.cosine(h, ahead) for h, ahead in pairs])
        numbers["coadaptation"] = weighted(similar, batch.discount)
    if "returns" in options:
        (obs, action), returns = options["returns"]
        numbers["bias"] = np.mean(case.make(case.theta, np.hstack([obs, action]))[0] - returns)
        numbers["bias_relative"] = numbers["bias"] / np.mean(np.abs(returns))
    return numbers


def weighted(values, discount):
    return sum(d * v for d, v in zip(discount, values, strict=True)) / sum(discount)


def attainable(sign, batch, bonus, gamma, options):
    """The sum of gamma^t (r_max + the largest gamma d b of that sign, if there is one)."""
    most = options.get("reward_bound", np.abs(batch.reward).max())
    return (most + max(0, *(sign * gamma * batch.discount * bonus))) / (1 - gamma)


def sum_of_entries(k, alpha, gamma):
    """beta(K) = max_i sum_j (|1_ij - alpha K_ij / B| + |alpha| gamma |K_ij| / B)."""
    size = len(k)
    terms = np.abs(np.eye(size) - alpha * k / size) + abs(alpha) * gamma * np.abs(k) / size
    return terms.sum(axis=1).max()
