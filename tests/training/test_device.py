"""Training with collection and updates in one compiled call, against training on the host, on the
same environments.
"""

import dataclasses
import functools
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import finished, records, start

import preqn_jax
from preqn_jax import agents, envs
from preqn_jax.envs import codec
from preqn_jax.envs.functional import FunctionalEnv, Outcome, many
from preqn_jax.options import UserError
from preqn_jax.training import collect, device, loop
from preqn_jax.training.device_rounds import Streams, make_rounds
from preqn_jax.training.errors import Diverged
from preqn_jax.types import Spec

LOOP = loop.LoopConfig(
    seeds=(3, 5), num_steps=400, start_steps=130, update_after=200, update_every=50, num_envs=5,
    batch_size=16, replay_capacity=300,
)  # fmt: skip
EPISODES = 3


def small(spec):
    """An agent that compiles quickly: linear, and moved by what it samples. Equal sizes share one
    agent, so that runs of equal settings share their programs.
    """
    return linear(spec.action_size, spec.obs_size)


@functools.cache
def linear(action_size, obs_size):
    def init(key):
        return jax.random.normal(key, (action_size, obs_size))

    def act(w, obs):
        return jnp.tanh(w @ obs)

    def explore(w, obs, key):
        return jnp.clip(act(w, obs) + 0.1 * jax.random.normal(key, (action_size,)), -1, 1)

    def update(w, batch, key, count):
        noise = jax.random.normal(key, w.shape) * (1 + count % 3)
        w = 0.99 * w + 1e-3 * (noise + jnp.mean(batch.reward + batch.discount))
        return w, {"critic/q_mean": jnp.mean(batch.reward), "critic/td_abs": jnp.mean(batch.obs)}

    def nothing(*_):
        raise NotImplementedError

    return agents.Agent(
        init, lambda w: w, act, explore, update, lambda w: {}, *(nothing, nothing, nothing)
    )


def ddpg(spec):
    return agents.make(agents.AgentConfig(algorithm="ddpg", hidden_sizes=(16, 16)), spec)


def dqn(spec):
    return agents.make(agents.AgentConfig(algorithm="dqn", hidden_sizes=(16, 16)), spec)


SPEC = Spec(1, 1, np.full(1, -1.0), np.full(1, 1.0))


def setup(env, resident=True, stops=(100,), make_agent=small, **fields) -> Any:
    config = dataclasses.replace(LOOP, **fields)
    recipe = collect.Recipe(make_agent, env, config, EPISODES)
    agent, spec = make_agent(envs.spec(env)), envs.spec(env)
    begun = loop.init(agent, spec, config)
    if resident:
        made = device.Resident(recipe, stops)
        return agent, made, made.rounds(*begun)
    made = collect.Collector(recipe)
    return agent, made, loop.rounds(agent, made, config, *begun)


def run(rounds):
    """All rounds, each with a copy of the learner if that is the round's own."""
    done = []
    for one in rounds:
        learner = jax.device_get(one.learner) if one.settled else None
        done.append(one._replace(learner=learner))
    return done


PENDULUM = envs.pure("native/pendulum")._replace(time_limit=30)
KINDS = [
    pytest.param("probe/delay", small, id="probe"),
    pytest.param("tabular/chain", small, id="finite", marks=pytest.mark.slow),
    pytest.param("tabular/chain", dqn, id="dqn", marks=pytest.mark.slow),
    pytest.param(PENDULUM, small, id="pendulum", marks=pytest.mark.slow),
    pytest.param(PENDULUM, ddpg, id="ddpg", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("env", "make_agent"), KINDS)
def test_the_device_does_what_the_host_does(env, make_agent):
    """The same episodes, replay buffer and evaluations, up to the rounding of float32 and what 250
    updates make of it.
    """
    agent, hosts, host = setup(env, False, make_agent=make_agent)
    _, residents, on_device = setup(env, make_agent=make_agent)
    these, those = run(host), run(on_device)
    assert [one.step for one in these] == [one.step for one in those]
    assert sum(len(one.episodes) for one in these) >= 10
    for a, b in zip(these, those, strict=True):
        assert a.counters == b.counters and a.metrics.keys() == b.metrics.keys()
        assert [i for i, _ in a.episodes] == [i for i, _ in b.episodes]
        close([x for _, x in a.episodes], [x for _, x in b.episodes])
        jax.tree.map(close, a.metrics, b.metrics)
    mine, theirs = (done[-1].learner for done in (these, those))
    assert (mine.replay.added == theirs.replay.added).all()
    jax.tree.map(close, mine.replay, theirs.replay)
    params = jax.vmap(agent.policy)(mine.agent)
    for a, b in zip(*(one.evaluate(params, 400) for one in (hosts, residents)), strict=True):
        jax.tree.map(close, a, b)


close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_round_is_the_same_in_calls_of_any_length_and_after_a_resume():
    """Bit for bit: with rounds one by one, with several at once, and from a state saved in the
    middle of episodes.
    """
    _, _, one_by_one = setup(PENDULUM, stops=(50,))
    alone = run(one_by_one)
    assert all(one.settled for one in alone)
    _, saver, rounds = setup(PENDULUM, stops=(400,))
    saver._pace.took(1, 1e-3)
    saver._pace.took(3, 1e-3)  # rounds are taken to be short
    together = []
    for one in rounds:
        together.append(one)
        if one.settled and one.step >= 200:
            kept = jax.device_get(one.learner), json.loads(json.dumps(saver.save())), one.counters
            break
    assert len({one.settled for one in together}) == 2
    _, loader, _ = setup(PENDULUM, stops=(400,))
    loader.load(kept[1])
    assert loader.save() == kept[1]
    resumed = run(loader.rounds(jax.device_put(kept[0]), kept[2]))
    for one, other in zip(alone, [*together, *resumed], strict=True):
        assert (one.step, one.counters, one.episodes) == (
            other.step,
            other.counters,
            other.episodes,
        )
        jax.tree.map(np.testing.assert_array_equal, one.metrics, other.metrics)
    jax.tree.map(np.testing.assert_array_equal, alone[-1].learner, resumed[-1].learner)


def breaking(at):
    """An environment whose reward is NaN from step `at` of an episode on, if the episode's start is
    above 0.
    """

    def step(state, action, key):
        start, t = state
        reward = jnp.where((start > 0) & (t >= at), jnp.nan, action[0])
        return jnp.stack([start, t + 1]), Outcome(reward, np.False_)

    def reset(key):
        return jnp.stack([jax.random.uniform(key, minval=-1), 0.0])

    return FunctionalEnv(SPEC, reset, step, lambda state: state[:1], 1000)


@pytest.mark.slow
def test_a_member_whose_environment_breaks_is_frozen_and_no_other_feels_it():
    fields = {"seeds": (0, 1, 2), "num_envs": 1}
    starts = [
        breaking(0).reset(jax.random.fold_in(jax.random.key(envs.derive_seed(s, 0, 0)), 0))[0]
        for s in fields["seeds"]
    ]
    bad = [i for i, start in enumerate(starts) if start > 0]
    good = [i for i in range(3) if i not in bad]
    assert len(bad) in (1, 2), "of other seeds some break"
    _, _, rounds = setup(breaking(270), stops=(50,), **fields)
    _, _, whole = setup(breaking(10_000), stops=(50,), **fields)
    broken, whole = run(rounds), run(whole)
    at = next(k for k, one in enumerate(broken) if one.diverged)
    assert [i for i, _ in broken[at].diverged] == bad and broken[at].step == 300
    assert [one.counters.frozen for one in broken] == 5 * [()] + 3 * [tuple(bad)]
    assert "reward is not finite at step 271" in str(broken[at].diverged[0][1])
    pick = lambda rows, tree: jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)
    learners = [done[-1].learner for done in (broken, whole)]
    jax.tree.map(np.testing.assert_array_equal, *(pick(good, one) for one in learners))
    before, last = (pick(bad, one.learner.agent) for one in (whole[4], broken[-1]))
    jax.tree.map(np.testing.assert_array_equal, before, last)
    assert (pick(bad, broken[-1].learner.replay.added) == 250).all()


@pytest.mark.slow
def test_a_member_whose_updates_break_keeps_the_agent_of_the_round_before():
    agent = small(SPEC)

    def make_fragile(spec):
        def update(state, batch, key, count):
            state, metrics = agent.update(state, batch, key, count)
            bad = (batch.reward[0] == batch.reward[0]) & (count >= 60)
            return state, {**metrics, "critic/q_mean": jnp.where(bad, jnp.nan, 0.0)}

        return agent._replace(update=update)

    _, _, rounds = setup("probe/delay", make_agent=make_fragile, stops=(50,))
    done = []
    with pytest.raises(Diverged, match="critic/q_mean is not finite at step 250, seed 5"):
        done.extend(iterate(rounds, done))
    assert [one.counters.frozen for one in done] == 4 * [()] + [(0, 1)]
    jax.tree.map(np.testing.assert_array_equal, done[4].learner.agent, done[3].learner.agent)


def iterate(rounds, done):
    for one in rounds:
        done.append(one._replace(learner=jax.device_get(one.learner)))
    return []


@pytest.mark.slow
def test_where_all_break_the_last_is_named_as_on_the_host():
    words = r"reward is not finite at step 131, seed 9"
    for resident in (True, False):
        _, _, rounds = setup("probe/nan", resident, seeds=(4, 9), num_envs=1)
        done = []
        with pytest.raises(Diverged, match=words):
            iterate(rounds, done)
        assert [i for i, _ in done[-1].diverged] == [0, 1]
        assert done[-1].counters.frozen == (0, 1) and done[-1].step == 150


@pytest.mark.slow
def test_many_environments_feed_one_member_and_time_limits_are_no_terminals():
    _, _, rounds = setup(
        "probe/time-limit", seeds=(0,), num_envs=64, update_every=128, update_after=256,
        start_steps=128, num_steps=768, replay_capacity=768, stops=(128,),
    )  # fmt: skip
    done = run(rounds)
    data = jax.tree.map(lambda leaf: leaf[0], done[-1].learner.replay.data)
    assert int(done[-1].learner.replay.added[0]) == 768 and len(done) == 6
    assert (data.discount == 1).all() and (data.reward == 1).all()
    assert [len(one.episodes) for one in done] == [0, 0, 64, 0, 64, 0]  # of 5 steps
    assert all(total == 5 for one in done for _, total in one.episodes)
    assert len(np.unique(data.action[:128])) == 128
    after = data.action[128:192]
    assert abs(after.mean()) < 0.5 and len(np.unique(after)) == 64  # one state, and noise


def test_whole_rounds_of_seven_members_lower_for_accelerators():
    config, spec = dataclasses.replace(LOOP, seeds=tuple(range(7))), PENDULUM.spec
    agent, env = small(spec), many(PENDULUM, "native/pendulum", axes=2)
    program = make_rounds(agent, env, spec, config, most=4, steps=30)
    like = jax.eval_shape(lambda: loop.init(agent, spec, config)[0])
    rows = len(like.replay.added)  # of members, and of those that make the devices' shares equal
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (rows, 5)))
    world = jax.eval_shape(program.start, keys)
    streams = Streams(jax.ShapeDtypeStruct((rows,), jnp.uint32), keys)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    parts = {
        program.rounds: (like, world, streams, number, number),
        program.act: (
            jax.eval_shape(jax.vmap(agent.policy), like.agent),
            jax.eval_shape(program.begin, keys),
            keys,
            number,
        ),
    }
    for function, arguments in parts.items():
        exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(*arguments)
        text = exported.mlir_module()
        assert "f64" not in text and "callback" not in text


def test_an_evaluation_that_does_not_end_is_cut_off():
    endless = breaking(10_000)._replace(time_limit=0)
    config = dataclasses.replace(LOOP, num_envs=1)
    recipe = collect.Recipe(small, endless, config, EPISODES, eval_max_steps=70)
    agent = small(endless.spec)
    learner, _ = loop.init(agent, endless.spec, config)
    made = device.Resident(recipe)
    made._chunk = 30  # fewer steps than the buffer has room for
    found = made.evaluate(jax.vmap(agent.policy)(learner.agent), 0, (1,))
    assert found[1] is None and found[0].cut.all()
    assert (found[0].lengths == 70).all() and found[0].rewards.shape == (70, EPISODES)
    assert (found[0].rewards == found[0].action[..., 0]).all()


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on_is_one_that_never_stopped(tmp_path):
    """Records and learners, bit for bit; the environment's name chooses the device."""
    options = {
        "env": "native/pendulum", "seeds": (0, 1), "num_envs": 5, "num_steps": 1200,
        "start_steps": 100, "update_after": 100, "batch_size": 16, "replay_capacity": 500,
        "log_every": 200, "eval_every": 400, "eval_episodes": 2, "checkpoint_every": 600,
    }  # fmt: skip
    ends = []
    for name, stop in (("whole", 0), ("parts", 700)):
        for progress in preqn_jax.train(small, logdir=tmp_path / name, **options):
            if 0 < stop <= progress.step:
                break
        if stop:
            *_, progress = preqn_jax.train(small, logdir=tmp_path / name, **options)
        assert progress.step == 1200 and len(progress.evaluations) == 2
        ends.append(jax.device_get(progress.trained.states))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    whole, parts = (records(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts
    assert sum("eval/return_mean" in line for line in whole) == 6
    assert sum("train/return" in line for line in whole) == 2  # episodes of 200 steps, at 1000
    assert (tmp_path / "whole" / "DONE").exists()


@pytest.mark.slow
@pytest.mark.parametrize("env", ["native/pendulum", "Pendulum-v1"])
def test_every_process_compiles_the_same_program(env, tmp_path, monkeypatch):
    """So that a second process finds it in the cache, whatever the order of sets."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    sizes = ("--hidden_sizes=8", "--start_steps=50", "--update_after=50", "--batch_size=8")
    found = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        logdir = f"--logdir={tmp_path / seed}"
        finished(start("--algorithm=td3", f"--env={env}", "--num_steps=100", logdir, *sizes))
        found.append({path.name for path in cache.glob("*-cache")})
    assert found[0] == found[1] == found[2] and len(found[0]) > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"env": "Pendulum-v1", "on_device": True},
            "'Pendulum-v1' cannot be stepped on the device",
        ),
        ({"env": "native/pendulum", "workers": 2}, "workers is 2, but environments on the device"),
    ],
)
def test_what_makes_no_sense_on_the_device_is_refused(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        next(preqn_jax.train(small, logdir=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_preqn_learns_to_swing_up_a_pendulum():
    """From about -1400, to a pendulum that is soon up and stays there: the median of the last
    evaluations, as single ones may fail.
    """
    options = {"num_steps": 6000, "start_steps": 500, "update_after": 500, "log_every": 500}
    sizes = {"hidden_sizes": (64, 64), "batch_size": 128}
    returns = [
        progress.evaluations[0].rewards.sum(axis=0).mean()
        for progress in preqn_jax.train(
            "preqn", "native/pendulum", eval_every=500, **options, **sizes
        )
        if progress.evaluations
    ]
    assert returns[0] < -800 and np.median(returns[-6:]) > -350


@pytest.mark.slow
def test_a_member_learns_the_same_in_any_company(monkeypatch):
    """Bit for bit, on one CPU, where members take turns."""
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: devices)

    def learned(seeds):
        config = dataclasses.replace(LOOP, seeds=seeds)
        resident = device.Resident(collect.Recipe(small, "native/pendulum", config, EPISODES))
        agent, spec = small(envs.spec("native/pendulum")), envs.spec("native/pendulum")
        for done in resident.rounds(*loop.init(agent, spec, config)):
            last = done
        returns = [one.rewards for one in resident.evaluate(agent.policy(last.learner.agent), 0)]
        return jax.tree.map(np.asarray, last.learner), last.metrics, returns

    five, two = learned((1, 2, 3, 5, 8)), learned((3, 5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:4], b), five[:2], two[:2])
    jax.tree.map(np.testing.assert_array_equal, five[2][2:4], two[2])


def odd():
    """An environment whose observations are rounded differently in different programs."""

    def reset(key):
        return jax.random.normal(key, (5,))

    def step(s, a, key):
        s = s * 0.9 + 0.1 * jnp.sin(s @ jnp.arange(25.0).reshape(5, 5) / 7) + 0.05 * a[0]
        return s, Outcome(-(s**2).sum(), jnp.bool_(False))

    def observe(s):
        shown = jnp.cos(s) * s + 0.3 * s**3, jnp.tanh(s @ jnp.ones((5, 5)) / 3)
        return jnp.concatenate([*shown, s / jnp.linalg.norm(s), jax.nn.softmax(s)])

    return FunctionalEnv(Spec(20, 1, -np.ones(1), np.ones(1)), reset, step, observe, 60)


def test_what_was_seen_is_what_a_resumed_run_acts_from():
    _, saver, rounds = setup(odd())
    run(rounds)
    _, loader, _ = setup(odd())
    seen = saver._world.obs + 1e-6  # as another program might round it
    saver._world = dataclasses.replace(saver._world, obs=seen)
    state = json.loads(json.dumps(saver.save()))
    loader.load(state)
    np.testing.assert_array_equal(loader._world.obs, seen)
    fresh = json.loads(json.dumps(loader.save()))
    for one in state:
        del one["env"]["seen"]  # saved by an earlier version
    codec.check_form(fresh, state)
    loader.load(state)
    np.testing.assert_allclose(loader._world.obs, seen, atol=1e-5)


def test_what_was_seen_on_the_host_is_what_a_resumed_run_acts_from():
    saver: Any
    saver, loader = (envs.make(odd(), 2) for _ in range(2))
    saver.reset([3, 4])
    seen = saver._obs = saver.step(np.ones((2, 1), np.float32)).obs + 1e-6
    state = json.loads(json.dumps(saver.save()))
    np.testing.assert_array_equal(loader.load(state)[0], seen)
    del state["seen"]
    np.testing.assert_allclose(loader.load(state)[0], seen, atol=1e-5)
