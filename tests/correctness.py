"""What of the paper is where in the code, and which test would see it go wrong.

`python tests/correctness.py` writes docs/correctness.md from `ROWS`; test_correctness.py holds that
page, the code and the tests against one another, and in the slow tier makes every row wrong.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "correctness.md"


class Row(NamedTuple):
    """One statement of the paper."""

    what: str  # its number there
    says: str
    code: str  # full name of what does it
    test: str  # file::function
    right: str  # a line, or part of one, that occurs once in the code's file
    wrong: str  # what it is replaced by for the test to fail


def lookup(name: str) -> Any:
    """The object with a full name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def source(row: Row) -> Path:
    """The file of a row's code: of a function where it is written, of a number its module."""
    found = inspect.unwrap(lookup(row.code)) if callable(lookup(row.code)) else None
    module = getattr(found, "__module__", None) or row.code.rpartition(".")[0]
    return Path(importlib.import_module(module).__file__ or "")


_MODULI, _OPERATORS = "tabular/test_moduli.py", "tabular/test_operators.py"
_STEPS, _AGENTS, _ROUNDS = "steps/test_steps.py", "agents/test_agents.py", "training/test_rounds.py"
_B = "agents/test_appendix_b.py"

SECTIONS: dict[str, list[Row]] = {
    "Section 2: preliminaries": [
        Row(
            "Eq. 1",
            "the modulus of an operator in the sup norm",
            "preqn_jax.tabular.modulus",
            f"{_MODULI}::test_the_modulus_is_the_largest_over_policies_and_at_most_beta",
            "jnp.abs(stay + flow) - jnp.abs(stay), axis=2",
            "flow, axis=2",
        ),
        Row(
            "Eq. 2",
            "the optimal Bellman operator T*",
            "preqn_jax.tabular.backup",
            f"{_OPERATORS}::test_backups_are_equation_2",
            'jnp.max(_table(mdp, "q", q), axis=1)',
            'jnp.mean(_table(mdp, "q", q), axis=1)',
        ),
        Row(
            "Eq. 4",
            "the semi-gradient step of one sample",
            "preqn_jax.steps.gradient",
            "steps/test_hard_batches.py::test_a_batch_of_one",
            "delta = targets - values\n        (grads,)",
            "delta = values - targets\n        (grads,)",
        ),
        Row(
            "Eq. 5",
            "the same in expectation over the data",
            "preqn_jax.steps.gradient",
            f"{_STEPS}::test_gradient_with_sgd_is_equation_5",
            "vjp(-delta / delta.shape[0])",
            "vjp(-delta)",
        ),
    ],
    "Section 3: characterizing divergence": [
        Row(
            "Eq. 6",
            "Q after a change of theta, to first order",
            "preqn_jax.ntk.factored.pushforward",
            "ntk/test_elsewhere.py::test_pushforward_is_the_adjoint_of_pullback",
            "jnp.sum(_dot(\"ic,cf->if\", x[:, 0, 0], weight[0]) * d[:, 0, 0], axis=1)",
            "jnp.sum(_dot(\"ic,cf->if\", x[:, 0, 0], weight[0]), axis=1)",
        ),
        Row(
            "Eqs. 7, 8",
            "the change of Q as a sum of kernel times TD error over the data",
            "preqn_jax.measures.attribution",
            "test_measures.py::test_the_rows_of_an_attribution_are_the_change_of_q_to_second_order",
            "return alpha * ntk.kernel(q, params, at, inputs)",
            "return ntk.kernel(q, params, at, inputs)",
        ),
        Row(
            "Eq. 9",
            "the neural tangent kernel",
            "preqn_jax.ntk.factored.gram",
            "test_paper.py::test_equation_9_the_kernel_is_of_inner_products_of_gradients",
            '_dot("ic,jc->ij", x[:, 0, 0], y[:, 0, 0]) *',
            '_dot("ic,jc->ij", d[:, 0, 0], e[:, 0, 0]) *',
        ),
        Row(
            "Theorem 1, Eq. 10",
            "a gradient step is U up to a remainder of second order",
            "preqn_jax.steps.gradient",
            "test_paper.py::test_theorem_1_a_gradient_step_is_u_to_second_order",
            "vjp(-delta / delta.shape[0])",
            "vjp(-delta / (delta.shape[0] + 1))",
        ),
        Row(
            "Eq. 11",
            "U",
            "preqn_jax.tabular.u",
            f"{_OPERATORS}::test_operators_are_equations_11_to_14",
            'weighted = _table(mdp, "rho", rho) *',
            "weighted = 1 *",
        ),
        Row(
            "Eq. 12, Lemma 1",
            "U1, a contraction of modulus 1 - (1 - gamma) alpha, with the fixed point Q*",
            "preqn_jax.tabular.u1",
            f"{_MODULI}::test_lemma_1_u1_contracts_with_its_modulus_and_no_less",
            "return q + alpha * (backup",
            "return q + 1.1 * alpha * (backup",
        ),
        Row(
            "Eq. 13, Lemma 2",
            "U2, one of modulus 1 - (1 - gamma) alpha min rho",
            "preqn_jax.tabular.u2",
            f"{_MODULI}::test_lemma_2_u2_contracts_with_its_modulus_and_no_less",
            'return q + alpha * _table(mdp, "rho", rho) *',
            'return q + alpha * _table(mdp, "rho", rho) ** 2 *',
        ),
        Row(
            "Eqs. 14, 15, Lemma 3",
            "U3, which linear features follow exactly",
            "preqn_jax.tabular.u",
            f"{_OPERATORS}::test_lemma_3_linear_updates_are_u3_for_many_steps",
            "_square(mdp, kernel), weighted.reshape(-1)",
            "jnp.eye(q.size), weighted.reshape(-1)",
        ),
        Row(
            "Theorem 2, Eq. 16",
            "the condition on the diagonal",
            "preqn_jax.measures.overshoot_slack",
            f"{_MODULI}::test_slacks_are_equations_16_and_17",
            "return 1 - alpha * jnp.diagonal(gram) * _over(gram, rho)",
            "return 2 - alpha * jnp.diagonal(gram) * _over(gram, rho)",
        ),
        Row(
            "Theorem 2, Eq. 17",
            "the condition on a row",
            "preqn_jax.measures.generalization_slack",
            f"{_MODULI}::test_slacks_are_equations_16_and_17",
            "return (1 - gamma) * diagonal - (1 + gamma) * off_diagonal",
            "return (1 - gamma) * diagonal - off_diagonal",
        ),
        Row(
            "Theorem 2",
            "with both, U3 is a contraction; its proof's bound on the modulus",
            "preqn_jax.measures.contraction_bound",
            f"{_MODULI}::test_theorem_2_its_conditions_make_u3_a_contraction",
            "+ step * (1 + gamma) * off_diagonal",
            "+ step * gamma * off_diagonal",
        ),
        Row(
            "Theorem 3, Eq. 18",
            "updates that share a fixed point converge at the product of their moduli",
            "preqn_jax.tabular.modulus",
            f"{_MODULI}::test_theorem_3_changing_kernels_with_one_fixed_point",
            "stay = (jnp.eye(size, dtype=weighted.dtype) - weighted)",
            "stay = (jnp.eye(size, dtype=weighted.dtype) - 2 * weighted)",
        ),
        Row(
            "Section 3.2",
            "the four failure modes, each with its remedy",
            "experiments.judge.section_3_2.extrapolation",
            "test_failure_modes.py::test_every_mode_crosses_its_line_and_every_remedy_works",
            "PLACEHOLDER",
            "PLACEHOLDER",
        ),
    ],
    "Section 4: PreQN": [
        Row(
            "Eq. 19",
            "Q' - Q is Phi^T (theta' - theta), to first order",
            "preqn_jax.ntk.factored.pushforward",
            "ntk/test_elsewhere.py::test_pushforward_and_elsewhere_equal_backpropagation_in_numpy",
            '_dot("id,d->i", jacobian, leaves[leaf].ravel())',
            'jnp.abs(_dot("id,d->i", jacobian, leaves[leaf].ravel()))',
        ),
        Row(
            "Eq. 20",
            "what PreQN attains, to second order",
            "preqn_jax.steps.preconditioned",
            f"{_STEPS}::test_preconditioned_attains_equation_20_to_second_order",
            "z, fit = solve(lin.gram, delta)  # Eq. 22",
            "z, fit = solve(lin.gram, 1.01 * delta)  # Eq. 22",
        ),
        Row(
            "Eq. 21",
            "and exactly where Q is linear and K of full rank",
            "preqn_jax.steps.preconditioned",
            "test_paper.py::test_equation_21_attains_equation_20_where_q_is_linear",
            "move = lin.pullback(z)  # Eq. 23",
            "move = lin.pullback(jnp.abs(z))  # Eq. 23",
        ),
        Row(
            "Eq. 22",
            "least squares where K is rank deficient",
            "preqn_jax.solve.eigh",
            "test_paper.py::test_with_fewer_parameters_than_pairs_equation_22_is_least_squares",
            "keep = values > _rcond(rcond, gram) * values[-1]",
            "keep = values > -1",
        ),
        Row(
            "Eq. 23",
            "the proposed step",
            "preqn_jax.ntk.factored.pullback",
            f"{_STEPS}::test_preconditioned_is_equations_22_and_23",
            "x[:, 0, 0] * z[:, None], d[:, 0, 0])[None]",
            "x[:, 0, 0] * z[::-1, None], d[:, 0, 0])[None]",
        ),
        Row(
            "Eq. 24",
            "a step is taken only if it is aligned with the TD errors",
            "preqn_jax.steps.preconditioned",
            "test_paper.py::test_equation_24_every_accepted_step_satisfies_its_criterion",
            "return (cos >= eta) | nothing_to_do, cos",
            "return (cos >= eta - 0.1) | nothing_to_do, cos",
        ),
        Row(
            "Eqs. 25, 26",
            "the natural gradient, by the Fisher matrix itself",
            "preqn_jax.steps.natural_gradient",
            f"{_STEPS}::test_undamped_natural_gradient_equals_preconditioned",
            "(image,) = pull(pushforward(v) / size)",
            "(image,) = pull(pushforward(v))",
        ),
        Row(
            "Eqs. 27, 28",
            "NGQL and PreQN are one update",
            "preqn_jax.steps.natural_gradient",
            "test_paper.py::test_section_4_1_preqn_and_natural_gradient_are_one_update",
            "return lin.values, lin.pullback(z), _solve_metrics(fit, lin.gram, delta)",
            "return lin.values, lin.pullback(delta), _solve_metrics(fit, lin.gram, delta)",
        ),
        Row(
            "Lemma 4",
            "(Phi Phi^T)^+ Phi = Phi (Phi^T Phi)^+",
            "preqn_jax.ntk.factored.pullback",
            "test_paper.py::test_lemma_4_on_the_features_of_a_network",
            'leaves[leaf] = _dot("i,id->d", z, jacobian)',
            'leaves[leaf] = 2 * _dot("i,id->d", z, jacobian)',
        ),
    ],
    "Algorithm 1": [
        Row(
            "Line 1",
            "initial theta and phi, Glorot's",
            "preqn_jax.networks.MLP",
            "test_networks.py::test_initial_weights_and_biases_follow_their_rule",
            "(nn.initializers.glorot_uniform(), _zeros)",
            "(nn.initializers.he_uniform(), _zeros)",
        ),
        Row(
            "Lines 3, 17",
            "every step is taken once, in rounds",
            "preqn_jax.training.loop.rounds",
            f"{_ROUNDS}::test_a_round_collects_and_updates_one_for_one_after_update_after",
            "counters.round * config.update_every < config.num_steps",
            "counters.round * config.update_every <= config.num_steps",
        ),
        Row(
            "Line 4",
            "a = mu(s) + Gaussian noise",
            "preqn_jax.agents.policies.deterministic",
            f"{_AGENTS}::test_exploration_noise_is_gaussian_of_its_size",
            "action + noise * jax.random.normal(key, action.shape), -1, 1)",
            "action + noise * jax.random.uniform(key, action.shape, minval=-1.7, maxval=1.7), -1, 1)",
        ),
        Row(
            "Line 5",
            "s', r and d, with the true successor where an episode ends",
            "preqn_jax.training.rollout.Rollout",
            f"{_ROUNDS}::test_the_replay_holds_what_happened",
            "1 - out.terminated.astype(np.float32)",
            "1 - (out.terminated | out.truncated).astype(np.float32)",
        ),
        Row(
            "Line 6",
            "they are stored",
            "preqn_jax.replay.add",
            "test_replay.py::test_holds_the_newest_and_overwrites_the_oldest",
            "rows = (replay.added + jnp.arange(n)) % capacity",
            "rows = (replay.added + 1 + jnp.arange(n)) % capacity",
        ),
        Row(
            "Line 7",
            "when it is time to update",
            "preqn_jax.training.loop.rounds",
            f"{_ROUNDS}::test_a_round_collects_and_updates_one_for_one_after_update_after",
            "if step >= config.update_after else 0",
            "if step > config.update_after else 0",
        ),
        Row(
            "Lines 8, 15, 16",
            "as many updates as steps",
            "preqn_jax.training.loop.rounds",
            f"{_ROUNDS}::test_a_round_collects_and_updates_one_for_one_after_update_after",
            "updates = config.update_every if",
            "updates = config.update_every // 2 if",
        ),
        Row(
            "Line 9",
            "a minibatch, uniform over D",
            "preqn_jax.replay.sample",
            "test_replay.py::test_samples_uniformly_from_the_filled_part_only",
            "jax.random.randint(key, shape, 0, replay.size)",
            "jax.random.randint(key, shape, 0, replay.data.reward.shape[0])",
        ),
        Row(
            "Line 9",
            "another one for every update",
            "preqn_jax.training.loop.make_learn",
            f"{_ROUNDS}::test_every_round_and_update_draws_anew",
            "jax.random.fold_in(jax.random.fold_in(key, SAMPLE), round_)",
            "jax.random.fold_in(key, SAMPLE)",
        ),
        Row(
            "Line 10",
            "the TD errors",
            "preqn_jax.agents.critic.critic",
            f"{_AGENTS}::test_targets_by_hand_at_a_terminal_and_at_a_time_limit",
            "discount * batch.discount * value",
            "discount * value",
        ),
        Row(
            "Line 10",
            "from theta itself, without target networks",
            "preqn_jax.agents.critic.critic",
            f"{_AGENTS}::test_without_slow_copies_the_online_networks_bootstrap",
            "targets.start(params, target))",
            "targets.start(params, target or 0.995))",
        ),
        Row(
            "Line 11",
            "K and Z",
            "preqn_jax.solve.cholesky",
            "test_solve.py::test_equals_numpy_on_a_well_conditioned_kernel",
            "absolute = damping * jnp.mean(jnp.diagonal(gram))\n        damped",
            "absolute = damping * jnp.max(jnp.diagonal(gram))\n        damped",
        ),
        Row(
            "Line 12",
            "the proposed theta'",
            "preqn_jax.steps.preconditioned",
            f"{_STEPS}::test_preconditioned_is_equations_22_and_23",
            "(p + alpha * scale.astype(p.dtype) * m)",
            "(p + scale.astype(p.dtype) * m)",
        ),
        Row(
            "Line 13",
            "exponential decay until the first candidate that passes",
            "preqn_jax.linesearch.backtrack",
            "test_linesearch.py::test_takes_the_first_scale_that_is_accepted",
            "scale * jnp.asarray(decay, scale.dtype)",
            "scale - (1 - jnp.asarray(decay, scale.dtype)) / 10",
        ),
        Row(
            "Line 14",
            "phi climbs Q",
            "preqn_jax.agents.policies.deterministic",
            f"{_AGENTS}::test_the_policy_climbs_the_first_critic",
            "return -jnp.mean(values.first(batch.obs, batched(params, batch.obs)))",
            "return -jnp.mean(values.least(batch.obs, batched(params, batch.obs)))",
        ),
        Row(
            "Line 14",
            "with the theta that line 13 has just set",
            "preqn_jax.agents.actor_critic.actor_critic",
            f"{_AGENTS}::test_the_policy_climbs_the_critic_as_it_is_after_its_step",
            "state = turn(state, batch, policy_key)\n",
            "state = ActorCriticState(turn(before, batch, policy_key).policy, moved)\n",
        ),
    ],
}
