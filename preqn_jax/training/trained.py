"""The results of training: policies, critics and records, of a run in progress or from its
directory.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from preqn_jax import actions, agents, envs
from preqn_jax.agents import Agent
from preqn_jax.batching import precise
from preqn_jax.options import UserError, to_install
from preqn_jax.training import directory, record
from preqn_jax.types import Array, Spec


def check_function(agent: Any) -> None:
    """Raises UserError unless `agent` is a function, as one that makes an agent must be."""
    if not callable(agent):
        words = repr(agent) if isinstance(agent, str) else f"of the type {type(agent).__name__}"
        raise UserError(
            f"agent is {words}, expected a function that makes an agent from a spec, as "
            "`lambda spec: agents.td3(spec)`"
        )


def agent_of(agent: Callable[[Spec], Agent], spec: Spec) -> Agent:
    """The agent that the function `agent` makes. Raises UserError where it makes none, or is no
    function.
    """
    check_function(agent)
    found = agent(spec)
    if not isinstance(found, Agent):
        raise UserError(
            f"the function {getattr(agent, '__qualname__', agent)!r} returned "
            f"{type(found).__name__}, expected an Agent, as agents.td3(spec) is"
        )
    return found


class Trained(NamedTuple):
    """An agent, and its states for all seeds."""

    agent: Agent
    states: Any  # leaves `[P, ...]`, those of the S seeds first
    spec: Spec
    seeds: tuple[int, ...]
    step: int  # environment steps of each seed
    config: Mapping[str, Any] = MappingProxyType({})  # what config.json says of the run

    def state(self, seed: int | None = None) -> Any:
        """One seed's state; the first's if None. Raises UserError for a seed that is not there, and
        where training went on since.
        """
        if seed is None:
            seed = self.seeds[0]
        if seed not in self.seeds:
            known = ", ".join(map(str, self.seeds))
            raise UserError(f"there is no seed {seed}; this run has {known}")
        if any(getattr(leaf, "is_deleted", bool)() for leaf in jax.tree.leaves(self.states)):
            raise UserError(
                f"these states, of step {self.step}, are gone: the next round has reused their "
                "memory; take `policy()`, `q()` or `state()` of a round before going on to the next"
            )
        return jax.tree.map(lambda leaf: leaf[self.seeds.index(seed)], self.states)

    def policy(self, seed: int | None = None) -> Callable[[Any], Array]:
        """`obs [obs] or [B, obs] -> action [act] or [B, act]` in the environment's own units;
        finitely many actions are integers, `[]` or `[B]` int32, of NumPy.

        Noiseless, and compiled. Raises UserError for a seed that is not there; what it returns
        raises ValueError for observations of another shape.

        Example:
          >>> import numpy as np, preqn_jax
          >>> run = preqn_jax.load("runs/x")
          >>> policy = run.policy(seed=0)
          >>> policy(np.zeros(run.spec.obs_size)).shape == (run.spec.action_size,)
          True
          >>> policy(np.zeros((5, run.spec.obs_size))).shape == (5, run.spec.action_size)
          True
        """
        params, act, spec = self.agent.policy(self.state(seed)), self.agent.act, self.spec
        own = _compiled(
            lambda obs: actions.to_environment(spec, act(params, obs)), obs=spec.obs_size
        )
        return own if spec.num_actions is None else lambda obs: _plain(own(obs)[..., 0])

    def q(self, seed: int | None = None) -> Callable[[Any, Any], Array]:
        """`(obs [obs], action [act]) -> value []`, or `([B, obs], [B, act]) -> [B]`, of the first
        critic; actions are as `policy` returns them.

        Compiled. Raises as `policy` does.

        Example:
          >>> import numpy as np, preqn_jax
          >>> run = preqn_jax.load("runs/x")
          >>> obs = np.zeros((5, run.spec.obs_size))
          >>> run.q(seed=0)(obs, run.policy(seed=0)(obs)).shape
          (5,)
        """
        params, q, spec = self.agent.critic(self.state(seed)), precise(self.agent.q), self.spec
        sizes = {"obs": spec.obs_size, "action": spec.action_size}
        ask = _compiled(
            lambda obs, action: q(params, obs, actions.from_environment(spec, action)), **sizes
        )
        if spec.num_actions is None:
            return ask
        return lambda obs, action: ask(obs, jnp.asarray(action)[..., None])


def _plain(action: Array) -> Any:
    """The action as NumPy's, which Gymnasium takes; as it is where it is traced."""
    return action if isinstance(action, jax.core.Tracer) else np.asarray(action)[()]


def _compiled(one: Callable[..., Array], **sizes: int) -> Callable[..., Array]:
    """`one`, a function of vectors with these names and sizes, for one or a batch of each."""
    ways = {1: jax.jit(one), 2: jax.jit(jax.vmap(one))}

    def checked(*inputs: Any) -> Array:
        arrays = [jnp.asarray(x, jnp.float32) for x in inputs]
        for (name, size), x in zip(sizes.items(), arrays, strict=True):
            if x.ndim not in ways or x.shape[-1] != size or x.shape[:-1] != arrays[0].shape[:-1]:
                batch = "" if x is arrays[0] else ", with the B of obs"
                raise ValueError(
                    f"{name} has the shape {x.shape}, expected ({size},) or (B, {size}){batch}"
                )
        return ways[arrays[0].ndim](*arrays)

    return checked


def load(
    logdir: str | Path,
    *,
    agent: Callable[[Spec], Agent] | None = None,
    env: envs.Source | None = None,
    trust: bool = False,
) -> Trained:
    """The newest whole checkpoint of a run directory; the run may still be going on.

    Args:
      logdir: the run directory.
      agent, env: what `train` was given, where that was not a name.
      trust: import what an environment's id or a wrapper names, as in "module:Env-v0", and pass
        text to the environment as arguments. A run directory may come from anybody, and importing a
        module runs it; nothing else in one is run.

    Raises:
      UserError: it is no run directory, has no whole checkpoint or none of such an agent, its
        environment cannot be made, or names a module and `trust` is off.

    Example:
      >>> import preqn_jax
      >>> run = preqn_jax.load("runs/x")
      >>> run.config["algorithm"], run.seeds, run.step
      ('preqn', (0, 1), 100)
    """
    logdir, given = Path(logdir).expanduser(), env
    config = directory.config_of(logdir)
    if env is None:
        env = directory.source(config, f"the run {str(logdir)!r}", trust)
    if agent is None and directory.own_parts(config):
        own = config["algorithm"]
        raise UserError(
            f"the run {str(logdir)!r} was trained with an agent made by a function, {own!r}, which "
            f"no file holds: in Python call preqn_jax.load({str(logdir)!r}, agent=...) with it"
        )
    seeds = tuple(config["seeds"])
    try:
        spec = envs.spec(env)
    except UserError as error:
        if given is not None:
            raise
        raise UserError(
            f"{error}; if `train` was given a function for {config['env']!r}, no file holds it: in "
            f"Python call preqn_jax.load({str(logdir)!r}, env=...) with it"
        ) from error
    by_name = partial(agents.make, directory.as_config(agents.AgentConfig, config))
    whole = agent_of(by_name if agent is None else agent, spec)
    named = [name for name, own in (("agent", agent), ("env", given)) if own is not None]
    words = " and ".join(f"`{name}`" for name in named)
    cure = "its records can be read all the same (`preqn_jax.records`)"
    cure = f"give the {words} that `train` was given" if named else cure
    step, states = _restore(logdir, whole, len(seeds), cure)
    return Trained(whole, states, spec, seeds, step, config)


def records(logdir: str | Path) -> Any:
    """The records of a run directory as a `pandas.DataFrame`; the run may still be going on.

    A row for each (seed, step) at which anything was recorded, in this order: "seed", "step" and
    a column for each metric, by its name in metrics.jsonl. NaN where it was not recorded there, or
    not finite.

    Raises UserError: it is no run directory, has no records yet, or pandas is not installed.

    Example:
      >>> import preqn_jax
      >>> frame = preqn_jax.records("runs/x")
      >>> frame.groupby("step")["eval/return_mean"].mean().index.tolist()  # over seeds
      [50, 100]
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise UserError(
            "records come as a pandas.DataFrame, and pandas is not installed; "
            f"{to_install('analysis')}"
        ) from error
    logdir = Path(logdir).expanduser()
    directory.config_of(logdir)
    if not (lines := record.of_run(logdir)):
        raise UserError(f"the run {str(logdir)!r} has no records yet")
    rows: dict[tuple[int, int], record.Line] = {}
    for line in lines:
        rows.setdefault((line["seed"], line["step"]), {}).update(line)
    columns = dict.fromkeys(name for line in lines for name in line)
    frame = pandas.DataFrame(
        [rows[key] for key in sorted(rows)], columns=list({"seed": 0, "step": 0} | columns)
    )
    return frame.astype({name: float for name in frame.columns if name not in ("seed", "step")})


def _restore(logdir: Path, agent: Agent, seeds: int, cure: str) -> tuple[int, Any]:
    from preqn_jax.training.checkpoint import Checkpointer  # orbax takes a second to import

    folder = logdir / directory.CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"the run {str(logdir)!r} has no checkpoints")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    like = jax.eval_shape(jax.vmap(agent.init), keys)
    found = Checkpointer(folder, read_only=True).restore_agent(like, cure)
    if found is None:
        raise UserError(f"the run {str(logdir)!r} has no checkpoint yet")
    return found
