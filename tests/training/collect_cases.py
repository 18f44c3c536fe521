"""What collectors are made from in tests, and the error that ends one."""

from functools import partial

import pytest

from preqn_jax import agents, envs
from preqn_jax.options import UserError
from preqn_jax.training import collect, loop

STEPS = {"num_steps": 600, "start_steps": 50, "update_after": 100}


def recipe(env_id, algorithm="td3", **loop_fields):
    config = agents.AgentConfig(algorithm=algorithm, hidden_sizes=(32, 32))
    return collect.Recipe(
        partial(agents.make, config),
        env_id,
        loop.LoopConfig(**{**STEPS, **loop_fields}),
        eval_episodes=2,
    )


def actors(recipe):
    agent = recipe.make_agent(envs.spec(recipe.env))
    return agent.policy(loop.each(agent.init)(loop.keys(recipe.config.seeds)))


def error_of(built, log, workers=0):
    """The error that ends the collector's rounds, once it is closed."""
    with pytest.raises(UserError) as caught:
        collector = collect.Collector(built, workers, log)
        try:
            actor = actors(built._replace(env="tests.faulty:Endless-v0"))
            for i in range(30):
                collector.collect(actor, i)
        finally:
            collector.close()
    assert "\n" not in str(caught.value)
    return caught.value
