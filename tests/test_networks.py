"""Networks: their shapes, what they compute, and how they start."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from preqn_jax import agents, networks, ntk
from preqn_jax.batching import batched
from preqn_jax.networks import MLP, Actor, Critic
from preqn_jax.options import UserError

jit = functools.partial(jax.jit, compiler_options=oracles.QUICK)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 9), (7, 8, 9)])
def test_shapes_of_a_critic_and_an_actor(hidden):
    obs, action = jnp.ones(5), jnp.ones(3)
    critic, actor = Critic(hidden), Actor(3, hidden)
    for module, inputs, size_in, size_out in ((critic, (obs, action), 8, 1), (actor, (obs,), 5, 3)):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        sizes = (size_in, *hidden, size_out)
        leaves = {leaf.shape for leaf in jax.tree.leaves(shapes)}
        assert leaves == {*itertools.pairwise(sizes), *((size,) for size in sizes[1:])}
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        out = jax.eval_shape(module.apply, shapes, *inputs)
        assert out.shape == (() if module is critic else (3,))


@pytest.mark.parametrize("activation", sorted(networks.ACTIVATIONS))
def test_a_critic_is_an_mlp_of_the_joined_inputs(activation, x64):
    layers = oracles.random_layers(0, (8, 9, 7, 1))
    obs, action = (
        np.random.default_rng(1).normal(size=(6, 5)),
        np.random.default_rng(2).normal(size=(6, 3)),
    )
    params = jax.tree.map(jnp.asarray, oracles.critic_params(layers))
    values: Any = jit(batched(Critic((9, 7), activation).apply))(params, (obs, action))
    expected, _ = oracles.mlp(layers, activation, np.concatenate([obs, action], axis=1))
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("activation", sorted(networks.ACTIVATIONS))
def test_an_actor_ends_in_a_tanh(activation, x64):
    layers = oracles.random_layers(0, (5, 9, 3))
    obs = 3 * np.random.default_rng(1).normal(size=(6, 5))
    params = jax.tree.map(jnp.asarray, oracles.critic_params(layers))
    actions: Any = jit(jax.vmap(Actor(3, (9,), activation).apply, in_axes=(None, 0)))(params, obs)
    (w, b), (v, c) = layers
    np.testing.assert_allclose(
        actions, np.tanh(oracles.ACTIVATIONS[activation][0](obs @ w + b) @ v + c), rtol=1e-12
    )


def test_a_gaussian_actor_ends_in_a_mean_and_a_bounded_log_std(x64):
    layers = oracles.random_layers(0, (5, 9, 6))
    layers[1][1][3:] = [
        -30,
        0,
        5,
    ]  # of the last layer's biases, those of log_std: below its bounds, within, above
    obs = np.random.default_rng(1).normal(size=(6, 5))
    params = jax.tree.map(jnp.asarray, oracles.critic_params(layers))
    mean, log_std = jit(jax.vmap(networks.GaussianActor(3, (9,)).apply, in_axes=(None, 0)))(
        params, obs
    )  # pyright: ignore
    (w, b), (v, c) = layers
    out = np.sin(obs @ w + b) @ v + c
    np.testing.assert_allclose(mean, out[:, :3], rtol=1e-12)
    np.testing.assert_allclose(log_std, np.clip(out[:, 3:], -20, 2), rtol=1e-12)
    assert (log_std[:, 0] == -20).all() and (log_std[:, 2] == 2).all()


SIZES = (150, 250, 200, 100)  # enough weights that 4 % is ten standard errors of their variance
# name -> (bound of weights, variance of weights, bound of biases), given fan-in and fan-out
RULES = {
    "glorot": lambda i, o: (np.sqrt(6 / (i + o)), 2 / (i + o), 0.0),
    "lecun": lambda i, o: (None, 1 / i, 0.0),
    "pytorch": lambda i, o: (1 / np.sqrt(i), 1 / (3 * i), 1 / np.sqrt(i)),
    "siren": lambda i, o: (np.sqrt(6 / i), 2 / i, 1 / np.sqrt(i)),
}


@functools.cache
def initialize(name):
    return jit(MLP(SIZES[1:-1], SIZES[-1], initializer=name).init)


def initial(name, seed=0):
    return oracles.layers_of(initialize(name)(jax.random.key(seed), jnp.ones(SIZES[0])))


def test_every_initializer_has_a_rule_here():
    assert set(RULES) == set(networks.INITIALIZERS)


@pytest.mark.parametrize("name", RULES)
def test_initial_weights_and_biases_follow_their_rule(name):
    """Bounds hold and are filled (uniform weights come within 1 % of theirs), variances are right,
    means are zero.
    """
    layers = initial(name)
    assert [w.shape for w, _ in layers] == list(itertools.pairwise(SIZES))
    for weights, biases in layers:
        bound, variance, bias_bound = RULES[name](*weights.shape)
        if bound is not None:
            assert 0.99 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(weights.var(), variance, rtol=0.04)
        assert abs(weights.mean()) < 5 * np.sqrt(variance / weights.size)
        if bias_bound == 0:
            assert np.all(biases == 0)
        else:
            assert 0.9 * bias_bound < np.abs(biases).max() <= bias_bound * (1 + 1e-6)
            np.testing.assert_allclose(biases.var(), bias_bound**2 / 3, rtol=0.4)


@pytest.mark.parametrize("name", RULES)
def test_initial_parameters_repeat_with_their_key_and_differ_otherwise(name):
    first, again, other = initial(name), initial(name), initial(name, seed=1)
    for (w, b), (v, c), (u, d) in zip(first, again, other, strict=True):
        assert np.array_equal(w, v) and np.array_equal(b, c)
        assert not np.any(w == u)
        assert np.all(b == 0) or not np.any(b == d)


def test_the_stacked_members_of_an_ensemble_start_with_their_own_fan_in():
    """The member axis is not a fan: a bound of 1 / sqrt(6) would show it."""
    init = jit(jax.vmap(Critic((64,), initializer="pytorch").init, in_axes=(0, None, None)))
    params = init(jax.random.split(jax.random.key(0), 6), jnp.ones(60), jnp.ones(4))
    kernel = params["params"]["mlp"]["Dense_0"]["kernel"]
    assert kernel.shape == (6, 64, 64)
    assert 0.99 / 8 < jnp.abs(kernel).max() <= 1 / 8
    assert len(np.unique(np.asarray(kernel[:, 0, 0]))) == 6


@pytest.mark.parametrize(
    "make", [lambda **names: Critic((8,), **names), lambda **names: Actor(3, (8,), **names)]
)
@pytest.mark.parametrize(
    "names, text",
    [
        (
            {"activation": "sine"},
            r"unknown activation 'sine' \(did you mean 'sin'\?\); choose one of relu, sin, tanh",
        ),
        ({"activation": "gelu"}, r"unknown activation 'gelu'.*choose one of relu, sin, tanh"),
        (
            {"initializer": "gloro"},
            r"unknown initializer 'gloro' \(did you mean 'glorot'\?\); choose one of glorot, lecun",
        ),
    ],
)
def test_unknown_names_are_answered_with_the_choices(make, names, text):
    module = make(**names)
    inputs = (jnp.ones(5),) if isinstance(module, Actor) else (jnp.ones(5), jnp.ones(3))
    with pytest.raises(UserError, match=text):
        module.init(jax.random.key(0), *inputs)


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_bfloat16_is_for_hidden_layers_alone_and_K_is_in_float32(activation):
    """K of a network in bfloat16 is that of float32 to bfloat16's three digits."""
    wide, narrow = (networks.Critic((32, 32), activation, dtype=name) for name in networks.DTYPES)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (24, 5)), jax.random.uniform(keys[1], (24, 2))
    params = narrow.init(keys[2], *(x[0] for x in inputs))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    program = str(jax.make_jaxpr(narrow.apply)(params, *(x[0] for x in inputs)))
    assert program.count(":bf16[32] = dot_general") == 2 and "bf16" not in str(
        jax.make_jaxpr(wide.apply)(params, *(x[0] for x in inputs))
    )
    exact, found, looped = (
        ntk.kernel(wide.apply, params, inputs),
        ntk.kernel(narrow.apply, params, inputs),
        ntk.kernel(narrow.apply, params, inputs, method="jacobian"),
    )
    value = jax.eval_shape(narrow.apply, params, *(x[0] for x in inputs))
    assert found.dtype == looped.dtype == value.dtype == jnp.float32
    size = np.linalg.norm(exact)
    assert 1e-5 * size < np.linalg.norm(found - exact) < 0.02 * size
    assert np.linalg.norm(found - looped) < 0.002 * size


def test_another_type_of_networks_is_refused():
    with pytest.raises(UserError, match="unknown network_dtype 'float16'"):
        agents.resolve(agents.AgentConfig(network_dtype="float16"))
    made = agents.resolve(agents.AgentConfig(network_dtype="bfloat16"))
    assert made.network["dtype"] == "bfloat16"
