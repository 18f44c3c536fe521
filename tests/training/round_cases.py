"""Small runs, round by round, on environments whose true values are known."""

import dataclasses
from functools import partial

from preqn_jax import agents, envs
from preqn_jax.training import collect, loop

LOOP = loop.LoopConfig(
    num_steps=600, start_steps=100, update_after=100, batch_size=32, replay_capacity=1000
)
NETS = {"hidden_sizes": (32, 32)}
EPISODES = 3  # of an evaluation


def setup(env_id="probe/observation", agent_fields=None, workers=0, **loop_fields):
    """The parts of a run; of DDPG unless told otherwise, as that compiles in a third of PreQN's
    time.
    """
    config = dataclasses.replace(LOOP, **loop_fields)
    fields = {"algorithm": "ddpg", **NETS, **(agent_fields or {})}
    make_agent = partial(agents.make, agents.AgentConfig(**fields))
    agent, spec = make_agent(envs.spec(env_id)), envs.spec(env_id)
    collector = collect.Collector(collect.Recipe(make_agent, env_id, config, EPISODES), workers)
    return agent, collector, config, *loop.init(agent, spec, config)


def run(*args):
    """All rounds of a run, and the learner after the last."""
    done = list(loop.rounds(*args))
    return done, done[-1].learner


ALGORITHMS = {
    "preqn": {"algorithm": "preqn"},
    "ngql": {"algorithm": "ngql"},
    "ddpg": {"algorithm": "ddpg", "polyak": 0.9, "critic_learning_rate": 3e-3},
    "td3": {"algorithm": "td3", "polyak": 0.9, "critic_learning_rate": 3e-3},
    "sac": {"algorithm": "sac", "polyak": 0.9, "critic_learning_rate": 3e-3, "temperature": 1e-3},
    "layer-norm": {
        "algorithm": "ddpg",
        "critic_norm": "layer",
        "target_networks": False,
        "critic_learning_rate": 3e-3,
    },
    "crossq": {
        "algorithm": "crossq",
        "critic_hidden_sizes": (32, 32),
        "automatic_temperature": False,
        # With a single state and nearly a single action the batch statistics have no spread, and
        # Q in evaluation mode wavers with them: lasting noise in the actions keeps them spread.
        "temperature": 0.03,
    },
}
