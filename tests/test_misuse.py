"""Natural mistakes with the parts of the library raise one sentence at once, and never give a wrong
number.
"""

import itertools
import math
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax import (
    actions,
    agents,
    diagnostics,
    linearize,
    linesearch,
    networks,
    problems,
    replay,
    solve,
    steps,
    tabular,
)
from preqn_jax.agents import AgentConfig
from preqn_jax.options import UserError
from preqn_jax.types import Spec, Transition

SPEC = Spec(3, 1, -np.ones(1), np.ones(1))
SMALL = {"hidden_sizes": (8,)}
NET = networks.Critic((8,))
ALL_AGENTS = ("preqn", "td3", "sac", "crossq", "dqn", "preqn_discrete")


def made(name, **options):
    spec = actions.spec(3, 4) if name in ("dqn", "preqn_discrete") else SPEC
    return agents.make(AgentConfig(name, **SMALL, **options), spec)


@pytest.mark.parametrize("name", ALL_AGENTS)
def test_acting_on_a_batch_without_vmap_is_a_sentence(name):
    agent = made(name)
    params = agent.policy(agent.init(jax.random.key(0)))
    batch = jnp.ones((4, 3))
    for act in (agent.act, lambda p, obs: agent.explore(p, obs, jax.random.key(1))):
        with pytest.raises(ValueError, match=r"got obs of the shape \(4, 3\), expected"):
            act(params, batch)
        assert jax.vmap(act, (None, 0))(params, batch).shape == (4, 1)


def test_a_linesearch_may_be_mapped_over_its_decay_outside_of_jit():
    def search(decay):
        return linesearch.backtrack(lambda scale: (scale < 0.3, scale), decay=decay)

    decays = jnp.array([0.5, 0.7])
    each = [float(search(decay).scale) for decay in decays]
    np.testing.assert_allclose(jax.vmap(search)(decays).scale, each, rtol=1e-6)


def test_specs_that_are_equal_do_not_differ():
    makers = (list, tuple, np.asarray, jnp.asarray)
    specs = [Spec(3, 2, make([-1.0, -1.0]), make([1.0, 1.0])) for make in makers]
    for one, other in itertools.product(specs, specs):
        assert one == other and (one != other) is False
    assert specs[0] != specs[0]._replace(obs_size=4)


@pytest.mark.parametrize("target", [True, 1.0, 1.5, -0.1])
def test_a_target_network_that_would_never_move_is_refused(target):
    step = steps.preconditioned(NET.apply, 0.1)
    with pytest.raises(ValueError, match="target, the share of a target network that is kept"):
        agents.critic(NET, step, target=target)
    with pytest.raises(ValueError, match="target, the share of a target network that is kept"):
        agents.deterministic(networks.Actor(1), optax.adam(1e-3), target=target)


def test_numbers_of_parts_are_within_their_ranges():
    adam = optax.adam(1e-3)
    with pytest.raises(ValueError, match="noise must not be negative, got -3"):
        agents.deterministic(networks.Actor(1), adam, noise=-3)
    with pytest.raises(ValueError, match="temperature must be positive to be tuned, got -1"):
        agents.gaussian(networks.GaussianActor(1), adam, temperature=-1, tuning=(adam, -1.0))
    policy = agents.deterministic(networks.Actor(1), adam)
    critic = agents.critic(NET, steps.gradient(NET.apply, adam))
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\), got 1.5"):
        agents.actor_critic(SPEC, policy, critic, discount=1.5)


def test_units_of_observations_take_rows_alone_and_none_changes_nothing():
    agent = agents.normalized(made("preqn"), SPEC)
    assert agent.observe is not None
    state = agent.observe(agent.init(jax.random.key(0)), jnp.eye(3) + 1)
    same = agent.observe(state, jnp.ones((0, 3)))
    assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(state)))
    for shape in ((3,), (4, 1)):
        with pytest.raises(ValueError, match=r"expected \[n, 3\]"):
            agent.observe(state, jnp.ones(shape))


def test_a_wrong_spec_is_a_sentence_and_does_no_harm_to_a_right_one():
    right = Spec(5, 1, -np.ones(1), np.ones(1))
    wrong = {
        "of size 5.0": right._replace(obs_size=5.0),
        r"of size \(5,\)": right._replace(obs_size=(5,)),
        r"bounds of the shapes \(\)": Spec(5, 1, -1.0, 1.0),
        r"bounds of the shapes \(1,\)": right._replace(action_size=2),
    }
    for words, spec in wrong.items():
        with pytest.raises(UserError, match=f"spec has .*{words}"):
            agents.preqn(spec, **SMALL)
    agents.preqn(right, **SMALL).init(jax.random.key(0))


def test_a_schedule_is_for_learning_rates():
    rate = optax.constant_schedule(0.5)
    rates = ("actor_learning_rate", "critic_learning_rate", "temperature_learning_rate")
    fields = {
        name: kind
        for name, kind in typing.get_type_hints(AgentConfig).items()
        if "float" in str(kind)
    }
    assert set(rates) < set(fields)
    for name in fields:
        if name in rates:
            continue
        with pytest.raises(UserError, match=f"{name} is <function"):
            agents.resolve(AgentConfig("preqn", **{name: rate}))
    agents.resolve(AgentConfig("preqn", actor_learning_rate=rate, critic_learning_rate=rate))


def test_the_delay_of_a_policy_may_be_traced():
    state = made("preqn").init(jax.random.key(0))
    rows = jnp.ones((4, 3)), jnp.ones((4, 1)), jnp.ones(4), jnp.ones(4), jnp.ones((4, 3))

    def moved(delay):
        agent = made("preqn", policy_delay=delay)
        return agent.update(state, Transition(*rows), jax.random.key(1), jnp.int32(0))[0].policy

    both = jax.jit(jax.vmap(moved))(jnp.array([1, 2]))
    for i, delay in enumerate((1, 2)):
        alone = jax.jit(partial(moved, delay))()
        for one, leaf in zip(jax.tree.leaves(alone), jax.tree.leaves(both), strict=True):
            np.testing.assert_allclose(leaf[i], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [solve.cholesky, solve.eigh, solve.lstsq, solve.cg])
@pytest.mark.parametrize(
    ("gram", "delta"), [((96, 96), (96, 1)), ((3, 3), ()), ((3, 2), (3,)), ((0, 0), (0,))]
)
def test_a_solve_takes_a_square_kernel_and_as_many_errors(make, gram, delta):
    with pytest.raises(ValueError, match=r"expected \[B, B\] and \[B\]"):
        make()(jnp.ones(gram), jnp.ones(delta))


@pytest.mark.parametrize("make", [solve.eigh, solve.lstsq])
def test_derivatives_of_a_spectral_solve_go_forward(make):
    gram, move = jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.array([[0.1, 0.2], [0.2, -0.3]])
    of = lambda gram: make()(gram, jnp.array([1.0, -1.0]))[0]
    _, slope = jax.jvp(of, (gram,), (move,))
    finite = (of(gram + 1e-2 * move) - of(gram - 1e-2 * move)) / 2e-2
    np.testing.assert_allclose(slope, finite, rtol=1e-2)


def test_products_with_the_gradients_take_what_they_are_of():
    params = {"b": jnp.ones(()), "w": jnp.ones(3)}
    lin = linearize(lambda p, x: x @ p["w"] + p["b"], params, (jnp.ones((4, 3)),))
    with pytest.raises(ValueError, match=r"z has the shape \(1,\), expected \(4,\)"):
        lin.pullback(jnp.ones(1))
    with pytest.raises(ValueError, match="change has the structure "):
        lin.pushforward({"a": jnp.ones(()), "z": jnp.ones(3)})
    with pytest.raises(ValueError, match="change has the shapes "):
        lin.pushforward({"b": jnp.ones(3), "w": jnp.ones(3)})


def test_a_q_that_is_infinite_has_a_finding():
    names = ("linearization_error", "gain", "extrapolation", "row_ratio")
    endless = dict.fromkeys(("soft_divergence", "q_largest", "td_error"), math.inf)
    finding = diagnostics.failure({**dict.fromkeys(names, 0.0), **endless})
    assert finding is not None and finding.evidence == "Q is no longer finite"


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_a_table_of_a_narrower_type_is_iterated(x64, kind):
    problem = problems.chain()
    q = jnp.zeros(problem.rho.shape, kind)
    path = tabular.iterate(lambda q: tabular.backup(problem.mdp, q), q, 3)
    assert path.shape == (4, *q.shape) and path[-1].max() > 1


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32])
def test_numbers_of_narrow_integers_do_not_wrap_around(kind):
    index = np.arange(100, dtype=kind)
    assert actions.index(actions.number(index, 100), 100).tolist() == index.tolist()
    spec = actions.spec(3, 100, first=-28)
    own = (index.astype(int) - 28).astype(np.int8)
    assert (
        actions.to_environment(spec, actions.from_environment(spec, own)).tolist() == own.tolist()
    )


def test_small_ones():
    for optimizer in (1e-3, optax.adam):
        with pytest.raises(ValueError, match="expected one of optax"):
            steps.gradient(NET.apply, optimizer)
    assert float(agents.Epsilon(1.0, 0.5, 0).after(0)) == 0.5
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        problems.chain(width=0.0)
    with pytest.raises(ValueError, match="capacity is -5"):
        replay.init(SPEC, -5)
    critic = agents.critic(NET, steps.preconditioned(NET.apply, 0.1))
    params = NET.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(1))
    assert critic.q(params, jnp.zeros(3), action=jnp.zeros(1)).shape == ()
