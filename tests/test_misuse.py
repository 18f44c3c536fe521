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
    measures,
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


def test_integers_are_no_actions_of_ours():
    """Two actions 0 and 1 would both be the last one."""
    spec = actions.spec(3, 2)
    network, obs = networks.ActionValues(2, (8,)), jnp.ones(3)
    params = network.init(jax.random.key(0), obs, jnp.zeros(1))
    with pytest.raises(ValueError, match=r"actions are of the type int32, expected numbers in"):
        network.apply(params, obs, jnp.ones(1, jnp.int32))
    one = Transition(*(np.ones((2, *shape), np.float32) for shape in ((3,), (1,), (), (), (3,))))
    with pytest.raises(ValueError, match=r"actions.from_environment\(spec, action\) makes of an"):
        replay.add(replay.init(spec, 4), one._replace(action=np.ones((2, 1), np.int64)))
    with pytest.raises(ValueError, match="actions are of the type int64"):
        replay.add(replay.init(spec, 4), one._replace(action=[[0], [1]]))
    numbers = actions.from_environment(spec, np.array([[0], [1]]))
    assert replay.add(replay.init(spec, 4), one._replace(action=numbers)).added == 2


@pytest.mark.parametrize("make", [solve.cg, solve.eigh, solve.lstsq])
def test_an_adaptive_damping_needs_a_solve_with_one(make):
    with pytest.raises(ValueError, match=f"is solve.{make.__name__}, whose first argument is none"):
        steps.preconditioned(lambda p, x: x @ p, solve=steps.Adaptive(solve=make))
    steps.preconditioned(
        lambda p, x: x @ p, solve=steps.Adaptive(solve=lambda x: solve.cg(damping=x))
    )


def test_batch_normalization_is_for_the_critic_that_moves_its_statistics():
    network = networks.Critic((8,), norm="batch")
    with pytest.raises(ValueError, match="only agents.crossq_critic moves: use that, or norm"):
        agents.critic(network, steps.gradient(network.apply, optax.adam(1e-3)))
    agents.crossq_critic(network, optax.adam(1e-3))


def test_a_discount_that_float32_takes_for_one_is_refused():
    gamma = 1 - 1e-8
    mdp = tabular.MDP(np.ones((1, 1, 1)), np.ones((1, 1)), gamma)
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\), as float32"):
        tabular.check(mdp)
    batch = Transition(*(jnp.ones((2, *shape)) for shape in ((1,), (1,), (), (), (1,))))
    case = diagnostics.Case(jnp.ones(1), batch, jnp.ones((2, 1)), gamma=gamma)
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\), in float32 too"):
        diagnostics.diagnose(lambda params, obs, action: params @ obs, case)


def test_vectors_for_a_cosine_have_one_size():
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(3, 1\), expected \[B\] for both"):
        linesearch.cosine(jnp.ones(3), jnp.ones((3, 1)))


@pytest.mark.parametrize("size", [1e-30, 1.0, 4e37, 1e38, 3e38])
def test_numbers_near_the_largest_are_not_lost(size):
    """The reciprocal of a float32 above 8.5e37 is subnormal, and devices flush it to zero."""
    delta = size * jnp.asarray([1.0, -0.5, 0.25])
    assert measures.alignment(0.1 * delta, delta) == pytest.approx(1, abs=1e-6)
    assert measures.gain(0.1 * delta, delta) == pytest.approx(0.1, rel=1e-6)
    every = jnp.ones((3, 3))
    expected = (0.75**2 - 1.3125) / (2 * 1.3125)
    assert measures.interference(every, delta) == pytest.approx(expected, rel=1e-5)
    z, info = solve.cholesky(0.0)(2 * jnp.eye(3), delta)
    np.testing.assert_allclose(z, delta / 2, rtol=1e-6)
    assert info.residual < 1e-6


def test_an_infinite_diagonal_is_no_row_of_its_own():
    gram = jnp.asarray([[jnp.inf, 1.0], [1.0, 2.0]])
    assert measures.row_ratio(gram).tolist() == [0.0, 0.25]


def test_what_lies_beyond_a_terminal_has_no_part_in_a_target():
    batch = Transition(None, None, jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 1.0]), None)
    upcoming = agents.Upcoming(None, None, {})
    value = jnp.asarray([jnp.nan, 10.0])
    assert agents.bootstrapped(batch, upcoming, value, 0.5).tolist() == [1.0, 7.0]


def test_a_step_that_overflows_the_parameters_is_not_finite():
    step = steps.natural_gradient(lambda p, x: x.astype(jnp.float16) @ p, 1.0)
    inputs, targets = (jnp.asarray([[1e-3, 0.0]]),), jnp.asarray([1e3])
    params, _, info = step.update(jnp.zeros(2, jnp.float16), step.init(None), inputs, targets)
    assert params.tolist() == [0, 0] and info.metrics["solve/finite"] == 0


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
