"""Networks: their shapes, what they compute, and their initial weights."""

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
    """Bounds hold and are used to the full (uniform weights come within 1 % of theirs), variances
    are right, means are zero.
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
    """The member axis must not count as a fan: a bound of 1 / sqrt(6) would show that it does."""
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
    """K of a network in bfloat16 equals that of float32, to the three digits of bfloat16."""
    wide, narrow = (networks.Critic((32, 32), activation, dtype=name) for name in networks.DTYPES)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(24, 5)), rng.uniform(size=(24, 2))
    inputs = tuple(x.astype(np.float32) for x in inputs)
    params = jit(narrow.init)(jax.random.key(2), *(x[0] for x in inputs))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    program = str(jax.make_jaxpr(narrow.apply)(params, *(x[0] for x in inputs)))
    assert program.count(":bf16[32] = dot_general") == 2 and "bf16" not in str(
        jax.make_jaxpr(wide.apply)(params, *(x[0] for x in inputs))
    )
    kernels = lambda params: (
        ntk.kernel(wide.apply, params, inputs),
        ntk.kernel(narrow.apply, params, inputs),
        ntk.kernel(narrow.apply, params, inputs, method="jacobian"),
    )
    exact, found, looped = map(np.asarray, jit(kernels)(params))
    value = jax.eval_shape(narrow.apply, params, *(x[0] for x in inputs))
    assert found.dtype == looped.dtype == value.dtype == jnp.float32
    size = np.linalg.norm(exact)
    assert 1e-5 * size < np.linalg.norm(found - exact) < 0.02 * size
    assert np.linalg.norm(found - looped) < 0.002 * size


@pytest.mark.parametrize("sizes", [16, (0,), (8, -1), (8.5,)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="hidden_sizes is .*, expected positive integers"):
        networks.Critic(sizes).init(jax.random.key(0), jnp.zeros(3), jnp.zeros(1))
    with pytest.raises(ValueError, match="a network has 0 outputs, expected at least 1"):
        networks.Actor(0, (8,)).init(jax.random.key(0), jnp.zeros(3))


def test_another_type_of_networks_is_refused():
    with pytest.raises(UserError, match="unknown network_dtype 'float16'"):
        agents.resolve(agents.AgentConfig(network_dtype="float16"))
    made = agents.resolve(agents.AgentConfig("td3", network_dtype="bfloat16"))
    assert made.network["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="bfloat16, but its 8 bits are too few for the diff"):
        agents.resolve(agents.AgentConfig("preqn", network_dtype="bfloat16"))


# --- layers that normalize, and features ----------------------------------------------------------


def dense(params, i, x):
    return x @ np.asarray(params[f"Dense_{i}"]["kernel"]) + np.asarray(params[f"Dense_{i}"]["bias"])


def arbitrary(critic, *sizes):
    """Random parameters, so that none has its special initial value, and inputs `[6, ...]`."""
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(6, size))) for size in sizes]
    shapes = jax.eval_shape(critic.init, jax.random.key(0), *(x[0] for x in inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes), inputs


def test_layer_norm_comes_before_the_activation_of_each_hidden_layer(x64):
    critic = Critic((9, 7), "relu", norm="layer")
    params, inputs = arbitrary(critic, 5, 3)
    values: Any = jit(batched(critic.apply))(params, tuple(inputs))
    mlp, x = params["params"]["mlp"], np.concatenate(inputs, axis=1)
    for i in range(2):
        x = dense(mlp, i, x)
        centred = x - x.mean(axis=1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
        norm = mlp[f"LayerNorm_{i}"]
        x = np.maximum(x * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    np.testing.assert_allclose(values, dense(mlp, 2, x)[:, 0], rtol=1e-10)


def test_fourier_features_are_sines_of_a_linear_map_before_the_first_layer(x64):
    critic = Critic((9,), "tanh", fourier=networks.Fourier(ratio=4))
    params, inputs = arbitrary(critic, 5, 3)
    values: Any = jit(batched(critic.apply))(params, tuple(inputs))
    mlp = params["params"]["mlp"]
    w, b = (np.asarray(mlp["fourier"][name]) for name in ("kernel", "bias"))
    assert w.shape == (8, 32)
    x = np.sin(np.pi * (np.concatenate(inputs, axis=1) @ w + b))
    np.testing.assert_allclose(
        values, dense(mlp, 1, np.tanh(dense(mlp, 0, x)))[:, 0], rtol=1e-10, atol=1e-10
    )


def test_fourier_features_start_with_frequencies_of_their_bandwidth():
    critic = Critic((9,), fourier=networks.Fourier(bandwidth=0.3))
    params = jit(critic.init)(jax.random.key(0), jnp.ones(50), jnp.ones(10))["params"]["mlp"]
    w, b = (np.asarray(params["fourier"][name]) for name in ("kernel", "bias"))
    assert w.shape == (60, 2400)
    np.testing.assert_allclose(w.std(), 0.3 / 60, rtol=0.02)
    np.testing.assert_allclose(b.std(), 1, rtol=0.06)
    assert abs(w.mean()) < 5 * w.std() / np.sqrt(w.size)


RENORM = networks.BatchRenorm(train=True, warmup=1)
EPSILON, MOMENTUM = 1e-3, 0.99


def renormalized(x, mean, var, late):
    """Ioffe 2017, Algorithm 1: x_hat, sigma_B, r, and mean and variance of the batch."""
    mu, variance = sum(x) / len(x), sum((x - sum(x) / len(x)) ** 2) / len(x)
    sigma_b, sigma = np.sqrt(EPSILON + variance), np.sqrt(EPSILON + var)
    r = np.clip(sigma_b / sigma, 1 / 3, 3) if late else np.ones_like(mu)
    d = np.clip((mu - mean) / sigma, -5, 5) if late else np.zeros_like(mu)
    return (x - mu) / sigma_b * r + d, sigma_b, r, mu, variance


@pytest.mark.parametrize("late", [False, True])
def test_batch_renormalization_its_gradient_and_its_statistics(late, x64):
    """With these running statistics, r and d reach their bounds on both sides."""
    rng = np.random.default_rng(0)
    x, upstream = rng.normal(1, 2, size=(8, 5)), rng.normal(size=(8, 5))
    mean, var = np.array([0.5, -40, 60, 1, 1.5]), np.array([2.0, 1, 1, 900, 1e-3])
    scale, bias = rng.normal(size=(2, 5))
    stats = {"mean": mean, "var": var, "count": float(late)}

    def forward(x, scale, bias, stats):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        one = lambda x: RENORM.apply(variables, x, mutable=["batch_stats"])
        return jax.vmap(one, axis_name=networks.BATCH, out_axes=(0, None))(x)

    @jit
    def both_ways(upstream, *given):
        y, vjp, moved = jax.vjp(forward, *given, has_aux=True)
        return y, vjp(upstream), moved

    y, pulled, moved = both_ways(upstream, x, scale, bias, stats)
    hat, sigma_b, r, mu, variance = renormalized(x, mean, var, late)
    np.testing.assert_allclose(y, scale * hat + bias, rtol=1e-10)
    if late:
        assert r[3] == 1 / 3 and r[4] == 3 and 1 / 3 < r[0] < 3
    dx, dscale, dbias, dstats = pulled
    g = upstream * scale * r / sigma_b  # of (x - mu_B) / sigma_B; r and d are constants
    plain = (x - mu) / sigma_b
    np.testing.assert_allclose(dx, g - g.mean(0) - plain * (g * plain).mean(0), atol=1e-10)
    np.testing.assert_allclose(dscale, (upstream * hat).sum(0), rtol=1e-10)
    np.testing.assert_allclose(dbias, upstream.sum(0), rtol=1e-10)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(dstats))
    after: Any = moved["batch_stats"]
    np.testing.assert_allclose(after["mean"], MOMENTUM * mean + (1 - MOMENTUM) * mu, rtol=1e-10)
    np.testing.assert_allclose(after["var"], MOMENTUM * var + (1 - MOMENTUM) * variance, rtol=1e-10)
    assert after["count"] == 1  # the end of the warm-up: no more are counted


def test_in_evaluation_mode_running_statistics_are_constants(x64):
    critic = Critic((9, 7), "relu", norm="batch")
    params, inputs = arbitrary(critic, 5, 3)
    params["batch_stats"] = jax.tree.map(np.exp, jax.device_get(params["batch_stats"]))
    values: Any = jit(batched(critic.apply))(params, tuple(inputs))
    mlp, stats = params["params"]["mlp"], params["batch_stats"]["mlp"]

    def normal(i, x):
        name = f"BatchRenorm_{i}"
        x = (x - np.asarray(stats[name]["mean"])) / np.sqrt(np.asarray(stats[name]["var"]) + 1e-3)
        return x * np.asarray(mlp[name]["scale"]) + np.asarray(mlp[name]["bias"])

    x = normal(0, np.concatenate(inputs, axis=1))
    for i in range(2):
        x = normal(i + 1, np.maximum(dense(mlp, i, x), 0))
    np.testing.assert_allclose(values, dense(mlp, 2, x)[:, 0], rtol=1e-10)
    pull = lambda params: ntk.linearize(critic.apply, params, inputs).pullback(jnp.ones(6))
    inputs = tuple(inputs)
    pulled = jit(pull)(params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(pulled["batch_stats"]))
    assert all((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(pulled["params"]))


def test_the_weights_of_a_network_are_all_but_its_statistics():
    critic = Critic((4,), norm="batch")
    params, plain = (
        jax.eval_shape(made.init, jax.random.key(0), jnp.ones(3), jnp.ones(2))
        for made in (critic, Critic((4,)))
    )
    assert set(networks.weights(params)) == {"params"}
    assert networks.weights(plain) is plain
    assert networks.weights(jnp.ones(3)).shape == (3,)  # of anybody's own parameters
