"""CrossQ: its update against float64 NumPy and SBX's, and where its running statistics are used."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from agent_cases import compiled, learn, leaves, make, same, transitions
from preqn_jax import agents, diagnostics, networks, ntk
from preqn_jax.agents import policies
from preqn_jax.options import UserError

EPSILON, MOMENTUM, GAMMA = 1e-3, 0.99, 0.9
FIELDS = {"algorithm": "crossq", "policy_delay": 2}
NET = networks.Critic((6, 5), "tanh", norm="batch")


def member(params, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf[i], np.float64), params)


def forward(variables, x):
    """Q `[2 B]` of a batch in training mode, before the end of the warm-up: batch normalization of
    the inputs and after each activation (Ioffe and Szegedy 2015); and each layer's mean and
    variance.
    """
    mlp, seen = variables["params"]["mlp"], []

    def normal(i, x):
        mean, var = sum(x) / len(x), sum((x - sum(x) / len(x)) ** 2) / len(x)
        seen.append((mean, var))
        one = mlp[f"BatchRenorm_{i}"]
        return (x - mean) / np.sqrt(var + EPSILON) * one["scale"] + one["bias"]

    x = normal(0, x)
    for i in range(2):
        x = normal(i + 1, np.tanh(x @ mlp[f"Dense_{i}"]["kernel"] + mlp[f"Dense_{i}"]["bias"]))
    return (x @ mlp["Dense_2"]["kernel"] + mlp["Dense_2"]["bias"])[:, 0], seen


def test_an_update_is_a_step_of_eq_5_in_training_mode_across_both_batches(x64):
    rate = 0.1
    critic = agents.crossq_critic(NET, optax.sgd(rate), members=2)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), transitions(n=12))
    rng = np.random.default_rng(1)
    ahead, bonus = np.tanh(rng.normal(size=(12, 2))), rng.normal(size=12)
    first = np.asarray(batch.obs)[0], np.asarray(batch.action)[0]
    start = jax.jit(critic.init)(jax.random.key(0), *first)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape), start.params["params"]
    )
    stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start.params["batch_stats"])
    start = start.replace(params={"params": params, "batch_stats": stats})
    upcoming = agents.Upcoming(jnp.asarray(ahead), jnp.asarray(bonus), {})
    end, did = jax.jit(critic.update, compiler_options=oracles.QUICK)(start, batch, upcoming, GAMMA)

    x = np.concatenate(
        [np.concatenate([batch.obs, batch.action], 1), np.concatenate([batch.next_obs, ahead], 1)]
    )
    before = [member(start.params, i) for i in range(2)]
    both = np.stack([forward(one, x)[0] for one in before])
    y = np.asarray(batch.reward) + GAMMA * np.asarray(batch.discount) * (
        both[:, 12:].min(axis=0) + bonus
    )
    np.testing.assert_allclose(did.targets, y, rtol=1e-9)
    np.testing.assert_allclose(did.metrics["critic/td_abs"], np.abs(y - both[:, :12]).mean())
    changes = []
    for i, one in enumerate(before):
        moved = member(end.params, i)
        loss = lambda variables: 0.5 * np.mean((y - forward(variables, x)[0][:12]) ** 2)
        shift = jax.tree.map(lambda a, b: a - b, moved["params"], one["params"])
        slope, step = directional(loss, one, shift), -sum((s**2).sum() for s in leaves(shift))
        np.testing.assert_allclose(rate * slope, step, rtol=1e-6)  # along -rate grad itself
        for _ in range(3):
            direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), one["params"])
            inner = sum(
                (a * b).sum() for a, b in zip(leaves(direction), leaves(shift), strict=True)
            )
            np.testing.assert_allclose(rate * directional(loss, one, direction), -inner, rtol=1e-5)
        changes.append(forward({"params": moved["params"]}, x)[0][:12] - both[i, :12])
        for k, (mean, var) in enumerate(forward(one, x)[1]):
            now = moved["batch_stats"]["mlp"][f"BatchRenorm_{k}"]
            np.testing.assert_allclose(now["mean"], (1 - MOMENTUM) * mean, atol=1e-10)
            np.testing.assert_allclose(now["var"], MOMENTUM + (1 - MOMENTUM) * var, rtol=1e-9)
            assert now["count"] == 1
    cos = [oracles.cosine(change, y - q) for change, q in zip(changes, both[:, :12], strict=True)]
    np.testing.assert_allclose(did.metrics["critic/alignment"], np.mean(cos), rtol=1e-6)


def directional(loss, variables, direction, step=1e-6):
    """The derivative of a loss along a direction, by central differences."""
    at = lambda scale: loss(
        {"params": jax.tree.map(lambda p, d: p + scale * d, variables["params"], direction)}
    )
    return (at(step) - at(-step)) / (2 * step)


@pytest.mark.slow
def test_the_policy_moves_its_statistics_at_its_turn_and_acts_by_them():
    agent = compiled(FIELDS)
    start = agent.init(jax.random.key(0))
    one, _ = agent.update(start, transitions(0), jax.random.key(1), jnp.int32(0))
    two, _ = agent.update(one, transitions(1), jax.random.key(2), jnp.int32(1))
    stats = [agent.policy(state)["batch_stats"] for state in (start, one, two)]
    assert same(stats[0], stats[1]) and not same(stats[1], stats[2])
    mean, var = (np.asarray(f(transitions(1).obs, 0)) for f in (np.mean, np.var))
    first = stats[2]["mlp"]["BatchRenorm_0"]
    np.testing.assert_allclose(first["mean"], (1 - MOMENTUM) * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first["var"], MOMENTUM + (1 - MOMENTUM) * var, rtol=1e-5)
    acted, alone = agent.policy(two), transitions(3).obs
    together = jax.vmap(agent.act, in_axes=(None, 0))(acted, alone)
    np.testing.assert_allclose(agent.act(acted, alone[0]), together[0], rtol=1e-5)
    shifted = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, acted["batch_stats"])
    assert not same(agent.act({**acted, "batch_stats": shifted}, alone[0]), together[0])


@pytest.mark.slow
def test_norms_are_of_weights_and_not_of_statistics():
    agent = compiled(FIELDS)
    state = agent.init(jax.random.key(0))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves(agent.policy(state)["params"])))
    summary = jax.jit(agent.summary)
    np.testing.assert_allclose(summary(state)["actor/norm"], norm, rtol=1e-5)
    end, _ = learn(agent, state)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves(end.critic.params["params"])))
    np.testing.assert_allclose(summary(end)["critic/norm"], norm, rtol=1e-5)


@pytest.mark.slow
def test_the_kernel_is_that_of_the_network_with_a_fixed_normalization():
    agent = compiled(FIELDS)
    state, _ = learn(agent, agent.init(jax.random.key(0)), 2)
    params, batch = agent.critic(state), transitions(5, n=8)
    inputs = (batch.obs, batch.action)
    fixed = lambda weights, *x: agent.q({**weights, "batch_stats": params["batch_stats"]}, *x)
    explicit = jax.jit(lambda w: ntk.kernel(fixed, w, inputs, method="jacobian"))
    expected = explicit(networks.weights(params))
    found = jax.jit(lambda params: ntk.linearize(agent.q, params, inputs).gram)(params)
    assert oracles.relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_a_diagnosis_looks_at_the_critic_in_evaluation_mode():
    agent = compiled(FIELDS)
    state, _ = learn(agent, agent.init(jax.random.key(0)), 2)
    batch = transitions(5)
    seen = agent.inspect(state, batch, jax.random.key(0))
    case = diagnostics.Case(seen.params, batch, seen.next_action, seen.targets, seen.moved)
    measured = diagnostics.diagnose(agent.q, case._replace(bonus=seen.bonus))
    values = jax.vmap(agent.q, in_axes=(None, 0, 0))(seen.params, batch.obs, batch.action)
    np.testing.assert_allclose(measured["q_mean"], values.mean(), rtol=1e-4)
    assert np.isfinite(list(measured.values())).all()


def test_the_preset_has_the_papers_numbers():
    made = agents.resolve(agents.AgentConfig(algorithm="crossq"))
    config = made.config
    assert made.critic["hidden_sizes"] == (2048, 2048) and config.hidden_sizes == (256, 256)
    assert (made.members, made.delay, made.target) == (2, 3, None)
    rates = config.actor_learning_rate, config.critic_learning_rate
    assert (*rates, config.temperature_learning_rate) == (1e-3, 1e-3, 1e-3)
    assert (config.adam_b1, config.temperature, config.automatic_temperature) == (0.5, 1.0, True)
    fixed = agents.resolve(agents.AgentConfig(algorithm="crossq", automatic_temperature=False))
    assert fixed.config.temperature_learning_rate is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"critic_step": "preconditioned"}, "critic_step is preconditioned.*has no kernel.*use"),
        ({"critic_step": "natural_gradient"}, "critic_step is natural_gradient.*has no kernel"),
        ({"critic_norm": "layer"}, "critic_norm is layer, but crossq's is batch"),
        ({"critic_features": "fourier"}, "critic_features is fourier, but crossq's is none"),
        ({"huber": 1.0}, "huber is 1.0, but crossq has none: leave it out"),
        ({"target_networks": True}, "target_networks is True, but crossq has none"),
        ({"algorithm": "td3", "critic_norm": "batch"}, "critic_norm is batch.*use `algorithm=cro"),
        ({"critic_hidden_sizes": ()}, "critic_hidden_sizes is empty"),
        ({"critic_norm": "group"}, "unknown critic_norm 'group'.*batch, layer, none"),
    ],
)
def test_what_crossq_cannot_have_is_refused_in_one_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        make({"algorithm": "crossq", **fields})


# --- SBX's ----------------------------------------------------------------------------------------

SIZES = [7, 6]
LARGE = transitions(n=24)._replace(
    **{name: 100 * getattr(transitions(n=24), name) for name in ("obs", "action", "next_obs")}
)


@pytest.fixture(scope="module")
def peer():
    """SBX's CrossQ on an environment of `SPEC`, with the same settings as ours."""
    sbx = pytest.importorskip("sbx")
    gymnasium = importlib.import_module("gymnasium")

    class Still(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

    with jax.numpy_rank_promotion("allow"):
        return sbx.CrossQ("MlpPolicy", Still(), policy_kwargs={"net_arch": SIZES}, seed=0)


def ours(state, warm):
    """Parameters and statistics for our critic, made from SBX's state. Gammas are 100, and inputs
    are those of `LARGE`, so that it does not matter where epsilon is added: SBX adds it to var_B /
    r^2, Ioffe 2017 to var_B.
    """
    rng = np.random.default_rng(0)
    name = "VmapCritic_0"
    params, stats = (tree.get(name, tree) for tree in (dict(state.params), dict(state.batch_stats)))
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)
    params = {
        layer: {
            key: leaf if key == "kernel" else draw(leaf) + 100 * (key == "scale")
            for key, leaf in one.items()
        }
        for layer, one in params.items()
    }
    stats = {
        layer: {
            "mean": 30 + draw(one["mean"]),
            "var": 2500 * jnp.exp(draw(one["var"])),
            "count": jnp.full(jnp.shape(one["steps"]), 1e5 * warm, jnp.float32),
        }
        for layer, one in stats.items()
    }
    return params, stats


def theirs(state, params, stats):
    """SBX's state, with our parameters and statistics."""
    stats = {
        layer: {
            "mean": one["mean"],
            "var": one["var"],
            "steps": one["count"].astype(jnp.int32),
            "r_max": jnp.full_like(one["count"], 3),
            "d_max": jnp.full_like(one["count"], 5),
        }
        for layer, one in stats.items()
    }
    nested = "VmapCritic_0" in state.params
    wrap = lambda tree: {"VmapCritic_0": tree} if nested else tree
    return state.replace(params=wrap(params), batch_stats=wrap(stats))


def equal(found, expected):
    """Asserts equality to 1e-5 of the largest entry of each leaf."""
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert oracles.relative_error(a, b) < 1e-5


@pytest.mark.parametrize("warm", [False, True])
def test_the_critic_learns_what_sbxs_learns(peer, warm):
    policy, batch, key = peer.policy, LARGE, jax.random.key(3)
    params, stats = ours(policy.qf_state, warm)
    qf = theirs(policy.qf_state, params, stats)
    discount = jnp.full(24, GAMMA)
    _, noise_key, _ = jax.random.split(key, 3)
    actor, coefficient = policy.actor_state, peer.ent_coef_state
    with jax.numpy_rank_promotion("allow"):
        after, (loss, alpha), _ = peer.update_critic(
            actor, qf, coefficient, *batch[:2], batch.next_obs, batch.reward,
            1 - batch.discount, discount, key,
        )  # fmt: skip
        variables = {"params": actor.params, "batch_stats": actor.batch_stats}
        dist = actor.apply_fn(variables, batch.next_obs, train=False)
        action = dist.sample(seed=noise_key)
        upcoming = agents.Upcoming(action, -alpha * dist.log_prob(action), {})
    net = networks.Critic(tuple(SIZES), "relu", norm="batch")
    critic = agents.crossq_critic(net, optax.adam(1e-3, b1=0.5))
    state = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
    wrap = lambda params, stats: {"params": {"mlp": params}, "batch_stats": {"mlp": stats}}
    state = state.replace(params=wrap(params, stats))
    end, did = jax.jit(critic.update)(state, batch, upcoming, GAMMA)
    equal(end.step[0].mu["params"]["mlp"], after.opt_state[0].mu["VmapCritic_0"])  # gradients
    equal(end.params["params"]["mlp"], after.params["VmapCritic_0"])
    for layer, one in after.batch_stats["VmapCritic_0"].items():
        now = end.params["batch_stats"]["mlp"][layer]
        equal({"mean": now["mean"], "var": now["var"]}, {k: one[k] for k in ("mean", "var")})
    values = networks.training(net)
    joint = (jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, action]))
    both = jax.vmap(values, in_axes=(0, None, None))(state.params, *joint)[0]
    squares = jnp.square(did.targets[None] - both[:, :24]).mean(axis=1)
    np.testing.assert_allclose(0.5 * squares.sum(), loss, rtol=1e-5)  # so that targets are the same


@pytest.mark.parametrize("warm", [False, True])
def test_the_policy_learns_what_sbxs_learns(peer, warm, monkeypatch):
    policy, batch, key = peer.policy, LARGE, jax.random.key(3)
    params, stats = ours(policy.actor_state, warm)
    params["Dense_2"]["kernel"], params["Dense_3"]["kernel"] = (
        1e-2 * params[name]["kernel"] for name in ("Dense_2", "Dense_3")
    )  # so that no tanh is saturated, after gammas of 100
    actor = theirs(policy.actor_state, params, stats)
    weights, kept = ours(policy.qf_state, warm)
    qf = theirs(policy.qf_state, weights, kept)
    _, _, noise_key = jax.random.split(key, 3)
    with jax.numpy_rank_promotion("allow"):
        after, _, _, _, entropy = peer.update_actor(actor, qf, peer.ent_coef_state, batch.obs, key)
        tuned, _ = peer.update_temperature(peer.target_entropy, peer.ent_coef_state, entropy)
        variables = {"params": actor.params, "batch_stats": actor.batch_stats}
        dist, _ = actor.apply_fn(variables, batch.obs, mutable=["batch_stats"], train=True)
        u = dist.bijector.inverse(dist.sample(seed=noise_key))
        noise = (u - dist.distribution.mean()) / dist.distribution.stddev()
    net = networks.GaussianActor(2, tuple(SIZES), "relu", norm="batch")
    pi = agents.gaussian(
        net,
        optax.adam(1e-3, b1=0.5),
        temperature=1.0,
        tuning=agents.Tuning(optax.adam(1e-3), -2),
        training=networks.training(net),
    )
    head = {
        part: jnp.concatenate([params["Dense_2"][part], params["Dense_3"][part]], -1)
        for part in ("kernel", "bias")
    }
    mlp = {**{k: v for k, v in params.items() if k != "Dense_3"}, "Dense_2": head}
    state = pi.init(jax.random.key(0), batch.obs[0])
    state = state.replace(params={"params": {"mlp": mlp}, "batch_stats": {"mlp": stats}})
    critic = agents.crossq_critic(networks.Critic(tuple(SIZES), "relu", norm="batch"), optax.sgd(1))
    critics = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
    critics = critics.replace(params={"params": {"mlp": weights}, "batch_stats": {"mlp": kept}})
    monkeypatch.setattr(policies.jax.random, "normal", lambda key, shape: noise)
    end = pi.improve(state, batch, critic.values(critics), key)
    monkeypatch.undo()
    moved, mu = end.params["params"]["mlp"], end.optimizer[0].mu["params"]["mlp"]
    for found, expected in ((mu, after.opt_state[0].mu), (moved, after.params)):
        joined = {**expected, "Dense_2": {
            part: jnp.concatenate([expected["Dense_2"][part], expected["Dense_3"][part]], -1)
            for part in ("kernel", "bias")
        }}  # fmt: skip
        equal(found, {layer: joined[layer] for layer in found})
    for layer, one in after.batch_stats.items():
        now = end.params["batch_stats"]["mlp"][layer]
        equal({"mean": now["mean"], "var": now["var"]}, {k: one[k] for k in ("mean", "var")})
    log = tuned.params["log_ent_coef"]
    np.testing.assert_allclose(end.log_temperature, log, rtol=1e-5)
