"""The parts of a PreQN-sin update, each by itself in a compiled scan, and a diagnosis beside one
linearization.

Each part feeds its result into the next iteration, so that XLA cannot move it out of the loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax import agents, diagnostics, linesearch, networks, ntk
from preqn_jax.agents import config as agents_config
from preqn_jax.batching import batched
from preqn_jax.types import Array, Params, QFunction, Spec, Transition

Parts = dict[str, tuple[Callable[[Any], Any], Any]]  # name -> (body, what it starts from)
LINEARIZATION, DIAGNOSIS = "one linearization, called", "diagnose, called"


class _Update(NamedTuple):
    """What the parts are computed from: networks, a minibatch, and PreQN's step for these."""

    q: QFunction
    policy: Callable[..., Any]
    theta: Params
    phi: Params
    batch: Transition  # `[B]`
    solve: Callable[[Array, Array], tuple[Array, Any]]
    gram: Array  # `[B, B]`
    delta: Array  # `[B]`
    move: Params
    candidates: int  # of the linesearch

    @property
    def inputs(self) -> tuple[Any, Any]:
        return self.batch.obs, self.batch.action


def scans(
    hidden_sizes: tuple[int, ...], spec: Spec, stored: Transition, updates: int
) -> dict[str, Callable[[], Any]]:
    """Functions that do one part `updates` times, on the minibatch `stored`."""
    update = _update(hidden_sizes, spec, jax.tree.map(jnp.asarray, stored))
    size, width = len(update.delta), hidden_sizes[-1]
    square = jnp.eye(width)
    product = (lambda x: x @ square, jnp.ones((size, width)))

    def scan(body: Callable[[Any], Any], start: Any) -> Callable[[], Any]:
        run = jax.jit(lambda x: jax.lax.scan(lambda x, _: (body(x), None), x, length=updates)[0])
        return lambda: run(start)

    bodies: Parts = {**_critic(update), **_search(update), **_actor(update)}
    bodies[f"one product, {size} x {width} x {width}"] = product
    return {name: scan(body, start) for name, (body, start) in bodies.items()}


def _update(hidden_sizes: tuple[int, ...], spec: Spec, batch: Transition) -> _Update:
    made = agents.resolve(agents.AgentConfig(hidden_sizes=hidden_sizes))
    config, activation = made.config, made.network["activation"]
    network: dict[str, Any] = {"hidden_sizes": hidden_sizes, "activation": activation}
    critic, actor = networks.Critic(**network), networks.Actor(spec.action_size, **network)
    q: QFunction = critic.apply
    inputs = (batch.obs, batch.action)
    theta = critic.init(jax.random.key(0), batch.obs[0], batch.action[0])
    phi = actor.init(jax.random.key(1), batch.obs[0])
    solve = agents_config.SOLVERS[config.solver](config)
    values, gram = jax.jit(lambda p: ntk.linearize(q, p, inputs)[:2])(theta)
    delta = batch.reward - values
    z = jax.jit(solve)(gram, delta)[0]
    move = jax.jit(lambda p, z: ntk.linearize(q, p, inputs).pullback(z))(theta, z)
    steps = config.linesearch_max_steps
    return _Update(q, actor.apply, theta, phi, batch, solve, gram, delta, move, steps)


def _critic(update: _Update) -> Parts:
    q, theta, batch = update.q, update.theta, update.batch

    def targets(carry: Any) -> Any:
        action = jax.vmap(update.policy, in_axes=(None, 0))(update.phi, batch.next_obs + carry)
        following = batched(q)(theta, (batch.next_obs, action))
        return 1e-9 * jnp.mean(batch.reward + 0.99 * following)

    def kernel(p: Any) -> Any:
        lin = ntk.linearize(q, p, update.inputs)
        step = lin.pullback(lin.values + 1e-9 * jnp.sum(lin.gram, axis=1))
        return jax.tree.map(lambda a, b: a + 1e-9 * b, p, step)

    def solving(carry: Any) -> Any:
        return 1e-6 * update.solve(update.gram, update.delta + carry)[0]

    return {
        "targets": (targets, jnp.float32(0)),
        "kernel, values, pullback": (kernel, theta),
        "solve": (solving, jnp.zeros_like(update.delta)),
    }


def _search(update: _Update) -> Parts:
    theta, move = update.theta, update.move

    def values(p: Any) -> Array:
        return batched(update.q)(p, update.inputs)

    def accept(p: Any, scale: Array) -> tuple[Array, Array]:
        before = values(theta)  # hoisted: the step has it from the linearization
        moved = jax.tree.map(lambda a, m: a + 1e-3 * scale * m, p, move)
        cos = linesearch.cosine(values(moved) - before, update.delta)
        return cos > -2, cos

    def search(p: Any) -> Any:
        found = linesearch.backtrack(partial(accept, p))
        return jax.tree.map(lambda a, m: a + 1e-6 * found.scale * found.aux * m, p, move)

    def eager(p: Any) -> Any:
        scales = 0.5 ** jnp.arange(update.candidates, dtype=jnp.float32)
        accepted, cos = jax.vmap(partial(accept, p))(scales)
        first = jnp.argmax(accepted)
        return jax.tree.map(lambda a, m: a + 1e-6 * scales[first] * cos[first] * m, p, move)

    return {
        "linesearch (one candidate)": (search, theta),
        "linesearch, all at once": (eager, theta),
    }


def _actor(update: _Update) -> Parts:
    def loss(p: Any) -> Array:
        action = jax.vmap(update.policy, in_axes=(None, 0))(p, update.batch.obs)
        return -jnp.mean(batched(update.q)(update.theta, (update.batch.obs, action)))

    def improving(p: Any) -> Any:
        return jax.tree.map(lambda a, g: a - 1e-6 * g, p, jax.grad(loss)(p))

    return {"actor": (improving, update.phi)}


def calls(
    hidden_sizes: tuple[int, ...], spec: Spec, stored: Transition, updates: int
) -> dict[str, Callable[[], Any]]:
    """Functions that call a diagnosis of a critic, and for comparison the linearization in it, from
    the host, `updates` times.
    """
    agent = agents.make(agents.AgentConfig(hidden_sizes=hidden_sizes), spec)
    batch = jax.tree.map(jnp.asarray, stored)
    step = jax.jit(agent.inspect)(agent.init(jax.random.key(0)), batch, jax.random.key(1))

    @jax.jit
    def linearize(theta: Any) -> Any:
        lin = ntk.linearize(agent.q, theta, (batch.obs, batch.action))
        return lin.values, lin.gram, lin.pullback(lin.values)

    def diagnose() -> Any:
        case = diagnostics.Case(step.params, batch, step.next_action, step.targets, step.moved)
        return diagnostics.diagnose(agent.q, case)

    def repeated(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [jax.block_until_ready(call()) for _ in range(updates)][-1]

    return {LINEARIZATION: repeated(lambda: linearize(step.params)), DIAGNOSIS: repeated(diagnose)}
