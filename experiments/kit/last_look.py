"""What the newest checkpoint of a run says of its critics: the measurements of a diagnosis, and
which members of a minibatch (its transitions) move Q most where |Q| is largest.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preqn_jax import agents, diagnostics, envs
from preqn_jax.batching import batched
from preqn_jax.options import UserError
from preqn_jax.training import directory, loop, monitor
from preqn_jax.training.checkpoint import Checkpointer

LARGEST = 8  # members of a minibatch that are named


class LastLook(NamedTuple):
    """A look at the critic of each seed, at one checkpoint."""

    step: int
    agent: agents.Agent
    seeds: list[int]
    looks: list[monitor.Look]
    discount: float
    discrete: bool  # whether actions are finitely many

    def measured(self) -> Iterator[dict[str, float]]:
        """The measurements of a diagnosis of each seed; none where Q is not finite."""
        given = self.discount, self.discrete
        return (monitor.measure(self.agent, look, *given) for look in self.looks)


def take(run: Path, config: dict[str, Any], trust: bool) -> LastLook:
    """A look at the newest whole checkpoint of a run. Raises UserError as `directory.source` does,
    if there is no checkpoint, and for an agent of somebody's own parts, which are not known here.
    """
    if directory.own_parts(config):
        raise UserError("its agent has parts that this command does not know")
    agent_config, loop_config = (
        directory.as_config(kind, config) for kind in (agents.AgentConfig, loop.LoopConfig)
    )
    found = None
    if (run / directory.CHECKPOINTS).is_dir():
        spec = envs.spec(directory.source(config, f"the run {str(run)!r}", trust))
        agent = agents.make(agent_config, spec)
        checkpoints = Checkpointer(run / directory.CHECKPOINTS, read_only=True)
        like, members = loop.init(agent, spec, loop_config)[0], range(len(config["seeds"]))
        cure = "what was diagnosed before is all there is"
        found = checkpoints.restore(like, members=members, cure=cure)
    if found is None:
        raise UserError("it has no checkpoint")
    step, learner, counters, *_ = found
    looks = monitor.make_looks(agent, loop_config)(learner, counters.round)
    given = config["discount"], agent_config.algorithm in agents.DISCRETE
    return LastLook(step, agent, config["seeds"], looks, *given)


def attribution(seen: LastLook) -> list[dict[str, Any]]:
    """For each seed, the members of a minibatch that move Q most where |Q| is largest in it. Shares
    are those of a plain step (Eq. 5): K_ij delta_j over the sum of its absolute values.
    """
    results, q = [], seen.agent.q
    for seed, (batch, proposal, _) in zip(seen.seeds, seen.looks, strict=True):
        inputs = (batch.obs, batch.action)
        values = batched(q)(proposal.params, inputs)
        delta = proposal.targets - values
        where = int(np.argmax(np.abs(values)))
        at = (batch.obs[where : where + 1], batch.action[where : where + 1])
        moves = np.asarray(diagnostics.attribution(q, proposal.params, inputs, delta, at))[0]
        order = np.argsort(-np.abs(moves))[:LARGEST]
        total = float(np.abs(moves).sum()) or 1.0
        members = [
            {
                "member": int(j),
                "share": float(moves[j] / total),
                "td_error": float(delta[j]),
                "q": float(values[j]),
                "reward": float(batch.reward[j]),
                "distance": float(np.linalg.norm(batch.obs[j] - batch.obs[where])),
            }
            for j in order
        ]
        results.append(
            {
                "seed": seed,
                "step": seen.step,
                "q": float(values[where]),
                "own_share": float(moves[where] / total),
                "members": members,
            }
        )
    return results
