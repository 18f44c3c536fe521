"""One seed on the host: its environments, and the frozen policy that acts in them.

Everything is compiled for one seed, and nothing here is shared among seeds: whichever process steps
a seed, and beside whatever other seeds, gets the same numbers, bit for bit. The random numbers of a
round are drawn in one call, so that a step calls only the policy and the environment.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.agents import Agent
from preqn_jax.envs import EnvError, VectorEnv, codec, derive_seed
from preqn_jax.options import UserError
from preqn_jax.training import watch
from preqn_jax.training.config import ACT, EVAL_ENV, TRAIN_ENV, LoopConfig, stream
from preqn_jax.training.errors import Asked, Diverged, Interrupted, never
from preqn_jax.types import Array, Params, Spec, Transition

_ROUNDING = 1e-3  # by which an action may lie beyond 1, also in half precision
_TAIL = 0.05  # the largest share of a return that may lie beyond a limit


class Acting(NamedTuple):
    """The compiled functions for acting; T is the number of vector steps in a round.

    draw: `(seed, round) -> (key data [T, E, ...], uniform actions [T, E, act])`.
    explore: `(params, obs [E, obs], key data [E, ...]) -> actions [E, act]`, with the noise
      of data collection.
    act: `(params, obs [n, obs]) -> actions [n, act]`, without noise.
    """

    draw: Callable[[Any, Any], tuple[Array, Array]]
    explore: Callable[[Params, Any, Any], Array]
    act: Callable[[Params, Any], Array]


class Evaluation(NamedTuple):
    """What happened in an evaluation of n episodes, the longest of T steps."""

    # `[T, n]`, 0 after an episode's end, NaN where the reward or the observation is not finite
    rewards: np.ndarray
    obs: np.ndarray  # `[T, n, obs]`, meaningless after an episode's end
    action: np.ndarray  # `[T, n, act]`, in [-1, 1]
    lengths: np.ndarray  # `[n]`, steps of each episode
    terminated: np.ndarray  # `[n]`, whether it ended in a terminal, and not at a time limit
    # `[n]`, whether it had not ended after `eval_max_steps`
    cut: np.ndarray = np.zeros(0, bool)

    @property
    def going(self) -> np.ndarray:
        """`[T, n]` bool, whether a step is before its episode's end."""
        return np.arange(len(self.rewards))[:, None] < self.lengths

    @property
    def returns(self) -> np.ndarray:
        """`[n]`, undiscounted, in float64; NaN where a reward is."""
        return self.rewards.sum(axis=0, dtype=np.float64)

    def marked(self) -> "Evaluation":
        """This evaluation, with NaN for rewards where the reward or the observation is not
        finite. Raises UserError for an action outside of [-1, 1].
        """
        beyond = np.abs(self.action[self.going])
        if (beyond > 1 + _ROUNDING).any():
            raise UserError(
                f"the policy's actions reach {np.nanmax(beyond):.3g}, but must lie in [-1, 1], "
                "which is scaled to the environment's bounds: end the policy's network with a tanh"
            )
        lost = ~np.isfinite(self.rewards) | ~np.isfinite(self.obs).all(axis=2)
        return self._replace(rewards=np.where(lost & self.going, np.nan, self.rewards))

    def known(self, discount: float) -> np.ndarray:
        """`[T, n]` bool, whether the discounted return from a step on is known to 5 %: at all steps
        of an episode that ended in a terminal, and at those long enough before a limit that cut it
        off.
        """
        left = self.lengths - np.arange(len(self.rewards))[:, None]
        return self.going & (self.terminated | (float(discount) ** np.maximum(left, 0) <= _TAIL))

    def to_go(self, discount: float) -> np.ndarray:
        """Discounted returns `[T, n]` from each step on, in float64; NaN where a reward is."""
        found, after = np.zeros(self.rewards.shape), np.zeros(self.rewards.shape[1])
        for t in reversed(range(len(found))):
            found[t] = after = self.rewards[t] + discount * after
        return found


@functools.lru_cache(maxsize=16)
def make_acting(agent: Agent, spec: Spec, config: LoopConfig) -> Acting:
    """The functions for acting of a run, for any of its seeds."""
    envs = config.num_envs

    @jax.jit
    def draw(seed: Array, round_: Array) -> tuple[Array, Array]:
        key = stream(jax.random.key(seed), ACT, round_)

        def one_step(t: Array) -> tuple[Array, Array]:
            explore_key, uniform_key = jax.random.split(jax.random.fold_in(key, t))
            uniform = jax.random.uniform(uniform_key, (envs, spec.action_size), minval=-1, maxval=1)
            return jax.random.key_data(jax.random.split(explore_key, envs)), uniform

        return jax.vmap(one_step)(jnp.arange(config.update_every // envs, dtype=jnp.uint32))

    @jax.jit
    def explore(params: Params, obs: Array, key_data: Array) -> Array:
        return jax.vmap(agent.explore, in_axes=(None, 0, 0))(
            params, obs, jax.random.wrap_key_data(key_data)
        )

    return Acting(draw, explore, jax.jit(jax.vmap(agent.act, in_axes=(None, 0))))


class Rollout:
    """The environments of one seed, in which it collects and is evaluated."""

    def __init__(
        self,
        acting: Acting,
        env: VectorEnv,
        eval_env: VectorEnv,
        config: LoopConfig,
        seed: int,
        eval_max_steps: int,
        place: watch.Place,
        asked: Asked = never,
    ):
        """`env` holds E environments, which are reset here; `eval_env` may be shared by several
        seeds, in turn. `place` is told which call of an environment this is in. An evaluation is
        given up once the run is `asked` to stop.

        This and all methods raise EnvError where an environment raises, or returns something wrong.
        """
        self._acting, self._env, self._eval_env, self._config, self._seed = (
            acting,
            env,
            eval_env,
            config,
            seed,
        )
        self._eval_max_steps, self._place, self._asked = eval_max_steps, place, asked
        seeds = [derive_seed(seed, TRAIN_ENV, e) for e in range(config.num_envs)]
        self._obs = self._ask(watch.RESET, 0, env.reset, seeds)  # `[E, obs]`
        self._returns = np.zeros(config.num_envs)  # rewards of the unfinished episodes so far

    def _ask(self, call: int, step: int, ask: Callable[..., Any], *given: Any) -> Any:
        """Calls a method `ask` of an environment, at `step` of the run, and returns its result."""
        place = self._place
        place[:] = call, self._seed, step, place[3] + 1
        try:
            return ask(*given)
        except EnvError as error:
            raise EnvError(f"{error} ({watch.when(place)})") from error.__cause__
        finally:
            place[0] = watch.OUTSIDE

    def collect(self, params: Params, round_: int) -> tuple[Transition, list[float]]:
        """Act for one round: transitions `[update_every]` in order of time, and the returns of the
        episodes that ended.

        The first `start_steps` act uniformly at random. Raises Diverged for a NaN or an infinity
        from the environment.
        """
        config, params = self._config, jax.device_put(params)
        keys, uniform = (
            np.asarray(x) for x in self._acting.draw(np.uint32(self._seed), np.uint32(round_))
        )
        start = round_ * config.update_every
        steps, episodes = [], []
        for t in range(len(keys)):
            obs = self._obs
            random = start + t * config.num_envs < config.start_steps
            action = (
                uniform[t] if random else np.asarray(self._acting.explore(params, obs, keys[t]))
            )
            now = start + (t + 1) * config.num_envs
            try:
                out = self._ask(watch.STEP, now, self._env.step, action)
            except EnvError:  # a NaN from it, and so in the action, may be what it refuses
                nothing = np.zeros(config.num_envs, np.float32)
                self._checked([*steps, Transition(obs, action, nothing, nothing, obs)], start)
                raise
            steps.append(
                Transition(
                    obs, action, out.reward, 1 - out.terminated.astype(np.float32), out.next_obs
                )
            )
            self._obs, self._returns = out.obs, self._returns + out.reward
            for i in np.flatnonzero(out.terminated | out.truncated):
                episodes.append(float(self._returns[i]))
                self._returns[i] = 0
        return self._checked(steps, start), episodes

    def _checked(self, steps: list[Transition], start: int) -> Transition:
        """The transitions `[n]` of steps. Raises Diverged for a NaN or an infinity. Once a round is
        enough: a policy and an environment that go on from a NaN for some steps do no harm.
        """
        transitions = Transition(*(np.concatenate(leaves) for leaves in zip(*steps, strict=True)))
        for quantity, value in (
            ("the environment's observation", transitions.next_obs),
            ("the environment's reward", transitions.reward),
            ("the environment's observation", transitions.obs),  # also those of resets
        ):
            bad = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
            if bad.any():
                envs = self._config.num_envs
                raise Diverged(
                    quantity, self._seed, start + (int(np.argmax(bad)) // envs + 1) * envs
                )
        return transitions

    def evaluate(self, params: Params, step: int) -> Evaluation:
        """A noiseless episode of each evaluation environment, cut off after `eval_max_steps`.

        The episodes begin from seeds derived from (seed, step, episode), in environments that keep
        nothing of earlier episodes, so that an evaluation depends on nothing before it. Raises
        Interrupted where the run is asked to stop.
        """
        env, params = self._eval_env, jax.device_put(params)
        seeds = [derive_seed(self._seed, EVAL_ENV, step, e) for e in range(env.num_envs)]
        obs = self._ask(watch.EVAL_RESET, step, env.reset, seeds)
        steps, running, terminated = [], np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
        lengths = np.zeros(env.num_envs, int)
        while running.any() and len(steps) < self._eval_max_steps:
            if self._asked():
                raise Interrupted
            action = np.asarray(self._acting.act(params, obs))
            # From a NaN an episode does not go on: the environment may refuse the action.
            taken = running & np.isfinite(obs).all(axis=1)
            out = self._ask(watch.EVAL_STEP, step, env.step, action, taken)
            steps.append((np.where(taken, out.reward, 0), obs, action))
            lengths += running
            terminated |= taken & out.terminated
            running = taken & ~(out.terminated | out.truncated)
            obs = out.obs
        rewards, seen, actions = (np.stack(leaves) for leaves in zip(*steps, strict=True))
        return Evaluation(rewards, seen, actions, lengths, terminated, running).marked()

    def save(self) -> Any:
        """All that the next rounds depend on beside the policy, as plain JSON."""
        return {"env": self._env.save(), "returns": codec.encode(self._returns)}

    def load(self, state: Any) -> None:
        """Go on from a saved state, bit for bit."""
        self._obs, anew = self._ask(watch.LOAD, 0, self._env.load, state["env"])
        self._returns = np.where(anew, 0, codec.decode(state["returns"]))


def discounted_max(evaluation: Evaluation, discount: float) -> float:
    """The largest discounted return from any state of an evaluation's episodes; NaN where a reward
    is NaN.

    Shortly before a limit, the return beyond it is unknown. There the discounted sum up to the
    limit counts only where it is not negative: otherwise a task whose rewards are all negative
    would attain almost 0 at its last step.
    """
    found, going = evaluation.to_go(discount), evaluation.going
    counts = going & (evaluation.known(discount) | ~(found < 0))  # also NaN, to be returned
    if not counts.any():  # in episodes too short for the horizon, the first step counts
        counts[0] = going[0]
    return float(found[counts].max())
