"""The four failure modes of section 3.2, one small experiment each: a quantity crosses its line, Q
diverges, a remedy works.

    python -m experiments.failure_modes --out=failure_modes.png --json=failure_modes.json

1. Linearization breaks: a network, and steps so long that the second-order terms of Eq. 10 are as
  large as the first. By itself
   that does not make Q diverge: with alpha = 0.3, where Eq. 16 still holds, Q stalls far from Q*.
     At alpha = 1 Q overshoots too.
2. Overshooting: a table with one entry that moves too far, alpha K_ii rho_i > 1 (Eq. 16).
3. Over-generalization: two states whose values pull each other up (Eq. 17).
4. Extrapolation error: the same with a little less generalization, and no data on the second state
  (Lemma 2).

Everything is exact and deterministic: whole problems, expected updates, no sampling but that of the
  network's first weights.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

from experiments.kit import flags, output, style
from preqn_jax import diagnostics, examples, networks, ntk, steps, tabular
from preqn_jax.options import check, option
from preqn_jax.types import Array, QFunction

EVERY = 5  # updates between the errors that --json keeps


@dataclasses.dataclass(frozen=True)
class FailureModesConfig:
    """What is run, and where it goes."""

    updates: int = option(1000, "updates in every run", at_least=1)
    seed: int = option(0, "of the network's first weights", at_least=0)
    out: str = option("failure_modes.png", "the picture to write: .png, .pdf or .svg")
    json: str = option("", "also write the table to this file")


class Run(NamedTuple):
    """How one update went on."""

    name: str
    remedy: bool
    error: (
        np.ndarray
    )  # max |Q - Q*|, at the start and every so many updates; infinite where Q overflowed


class Mode(NamedTuple):
    """A failure mode made visible."""

    name: str
    parameter: str  # what is varied
    quantity: str  # what is watched
    xs: np.ndarray  # `[n]`, values of the parameter
    ys: np.ndarray  # `[n]`, the quantity there, which should stay below 1
    bad: float  # the parameter of the failing run
    good: float  # the parameter of the remedied run, `bad` where the remedy is another
    runs: list[Run]


def main(argv: list[str]) -> int:
    config = flags.parse(FailureModesConfig)
    check(config)
    makers = (linearization, overshooting, generalization, extrapolation)
    modes = [make(config) for make in tqdm(makers, desc="failure modes")]
    table = [row for mode in modes for row in _rows(mode)]
    _print(table, config)
    draw(modes, Path(config.out), config.seed)
    print(config.out)
    if config.json:
        _write(config, table, modes)
    return 0


def linearization(config: FailureModesConfig) -> Mode:
    """A critic on a chain with large rewards, Eq. 5 with the whole chain as its minibatch.

    The quantity is |Q' - U Q| / |U Q - Q| at the first step. Rewards scale it, but not Eq. 16: they
    tell the two modes apart.
    """
    problem = examples.chain(5)
    mdp = problem.mdp._replace(reward=100 * problem.mdp.reward)
    states, actions = problem.rho.shape
    critic = networks.Critic((32,))
    q: QFunction = critic.apply
    state, action = (index.ravel() for index in np.indices((states, actions)))
    inputs = (jnp.eye(states)[state], jnp.linspace(-1, 1, actions)[action][:, None])
    first = critic.init(jax.random.key(config.seed), inputs[0][0], inputs[1][0])

    def table(params: Any) -> Array:
        return jax.vmap(q, in_axes=(None, 0, 0))(params, *inputs).reshape(states, actions)

    def gradient(alpha: Array | float) -> steps.ValueStep:
        return steps.gradient(q, optax.sgd(alpha))

    def update(params: Any, step: steps.ValueStep) -> Any:
        targets = tabular.backup(mdp, table(params)).reshape(-1)
        return step.update(params, step.init(params), inputs, targets)[0]

    kernel = ntk.kernel(q, first, inputs)

    @jax.jit
    def remainder(alpha: Array) -> Array:
        before, after = table(first), table(update(first, gradient(alpha)))
        leading = tabular.u(mdp, before, alpha, problem.rho, kernel)
        return jnp.max(jnp.abs(after - leading)) / jnp.max(jnp.abs(leading - before))

    star = tabular.value_iteration(mdp, 1e-4).q

    def run(name: str, remedy: bool, step: steps.ValueStep) -> Run:
        def advance(params: Any, _: None) -> tuple[Any, Array]:
            return update(params, step), jnp.max(jnp.abs(table(params) - star))

        return Run(
            name,
            remedy,
            np.asarray(
                jax.jit(lambda p: jax.lax.scan(advance, p, length=config.updates + 1)[1])(first)
            ),
        )

    alphas, bad, good = np.geomspace(0.001, 3, 60), 0.3, 0.003
    return Mode(
        "1. linearization breaks",
        r"step $\alpha$",
        r"$|Q'-UQ|\,/\,|UQ-Q|$ at the first step",
        alphas,
        np.array([remainder(jnp.float32(alpha)) for alpha in alphas]),
        bad,
        good,
        [
            run(f"gradient, alpha = {bad}", False, gradient(bad)),
            run("gradient, alpha = 1", False, gradient(1.0)),
            run(f"gradient, alpha = {good}", True, gradient(good)),
            run("PreQN, with its linesearch", True, steps.preconditioned(q, 0.5)),
        ],
    )


def overshooting(config: FailureModesConfig) -> Mode:
    """A table on a chain, but for one entry of K's diagonal; alpha and rho give every other pair a
    step of a half.
    """
    problem = examples.chain(5, width=0.01)
    mdp, rho, size = problem.mdp, problem.rho, problem.rho.size
    alpha = 0.5 * size

    def kernel(scale: Array | float) -> Array:
        return jnp.eye(size).at[5, 5].set(scale)

    scales, bad = np.linspace(0.25, 6, 47), 5.0
    return Mode(
        "2. overshooting",
        "one entry of K's diagonal",
        r"$\max_i\ \alpha K_{ii}\rho_i$ (Eq. 16)",
        scales,
        np.array(
            [1 - diagnostics.overshoot_slack(kernel(s), rho.ravel(), alpha).min() for s in scales]
        ),
        bad,
        bad,
        [
            _run(
                "U3", False, problem, lambda q: tabular.u3(mdp, q, alpha, rho, kernel(bad)), config
            ),
            _run(
                "U3, a third of the step",
                True,
                problem,
                lambda q: tabular.u3(mdp, q, alpha / 3, rho, kernel(bad)),
                config,
            ),
            _run(
                "preconditioned",
                True,
                problem,
                lambda q: tabular.preconditioned(mdp, q, 0.5, rho, kernel(bad)),
                config,
            ),
        ],
    )


def generalization(config: FailureModesConfig) -> Mode:
    """Two states with K = [[1, 2c], [2c, 4]]: at c = 1 the one weight of w-to-2w."""
    problem = examples.w_to_2w(gamma=0.9)
    mdp, rho = problem.mdp, problem.rho
    cs, bad = np.linspace(0, 0.95, 39), 0.95

    def ratio(c: float) -> float:  # of the two sides of Eq. 17, in the tightest row
        gamma, k = float(mdp.gamma), np.asarray(_two_states(c)) * np.asarray(rho).ravel()
        return float(np.max((1 + gamma) * k[[0, 1], [1, 0]] / ((1 - gamma) * np.diagonal(k))))

    return Mode(
        "3. over-generalization",
        "off-diagonal of K, as c in [[1, 2c], [2c, 4]]",
        "left over right side of Eq. 17",
        cs,
        np.array([ratio(c) for c in cs]),
        bad,
        bad,
        [
            _run(
                "U3",
                False,
                problem,
                lambda q: tabular.u3(mdp, q, 0.4, rho, _two_states(bad)),
                config,
            ),
            _run(
                "preconditioned",
                True,
                problem,
                lambda q: tabular.preconditioned(mdp, q, 0.4, rho, _two_states(bad)),
                config,
            ),
        ],
    )


def extrapolation(config: FailureModesConfig) -> Mode:
    """c = 0.6, which uniform data endure; the quantity is the spectral radius of the update, linear
    with its one action.
    """
    problem, kernel = examples.w_to_2w(gamma=0.9), _two_states(0.6)
    mdp = problem.mdp
    shares, bad, good = np.linspace(0, 0.5, 51), 0.0, 0.5

    def rho(share: float | Array) -> Array:
        return jnp.stack([1 - jnp.asarray(share), jnp.asarray(share)])[:, None]

    def matrix(share: Array) -> Array:
        return jax.jacobian(lambda q: tabular.u3(mdp, q[:, None], 0.4, rho(share), kernel)[:, 0])(
            jnp.zeros(2)
        )

    radii = np.abs(np.linalg.eigvals(jax.vmap(matrix)(jnp.asarray(shares)))).max(axis=1)
    return Mode(
        "4. extrapolation error",
        r"$\rho$ of the second state",
        "spectral radius of the update",
        shares,
        radii,
        bad,
        good,
        [
            _run(
                "U3, no data there",
                False,
                problem,
                lambda q: tabular.u3(mdp, q, 0.4, rho(bad), kernel),
                config,
            ),
            _run(
                "preconditioned, no data there",
                False,
                problem,
                lambda q: tabular.preconditioned(mdp, q, 0.4, rho(bad), kernel),
                config,
            ),
            _run(
                "U3, half of the data there",
                True,
                problem,
                lambda q: tabular.u3(mdp, q, 0.4, rho(good), kernel),
                config,
            ),
        ],
    )


def _two_states(c: float) -> Array:
    return jnp.array([[1, 2 * c], [2 * c, 4]])


def _run(
    name: str,
    remedy: bool,
    problem: examples.Example,
    operator: Callable,
    config: FailureModesConfig,
) -> Run:
    path = tabular.iterate(operator, problem.start, config.updates)
    star = np.asarray(tabular.value_iteration(problem.mdp, 1e-5).q)
    return Run(name, remedy, np.abs(np.asarray(path) - star).max(axis=(1, 2)))


def _rows(mode: Mode) -> list[dict[str, Any]]:
    """One for each run; `quantity` is that of the failing setting, where its line is at 1."""
    quantity = float(np.interp(mode.bad, mode.xs, mode.ys))
    return [
        {
            "mode": mode.name,
            "quantity": quantity,
            "run": run.name,
            "remedy": run.remedy,
            "first": run.error[0],
            "last": run.error[-1],
        }
        for run in mode.runs
    ]


def _print(table: list[dict[str, Any]], config: FailureModesConfig) -> None:
    print(
        f"max |Q - Q*| at the start and after {config.updates} updates; the quantity is the "
        f"failing setting's, its line 1"
    )
    print(f"{'':<26}{'quantity':>9}  {'':<32}{'start':>10}{'end':>10}")
    for row in table:
        end = f"{row['last']:.3g}" if np.isfinite(row["last"]) else "overflow"
        print(
            f"{row['mode']:<26}{row['quantity']:>9.3g}  "
            f"{row['run']:<32}{row['first']:>10.3g}{end:>10}"
        )


def draw(modes: list[Mode], out: Path, seed: int, every: int = 1) -> None:
    """Each mode's quantity above, its runs below, whose errors are `every` so many updates. Raises
    UserError if it cannot.
    """
    figure, axes = plt.subplots(
        2, len(modes), figsize=(4.2 * len(modes), 7), constrained_layout=True
    )
    for mode, top, bottom in zip(modes, axes[0], axes[1], strict=True):
        top.plot(mode.xs, mode.ys, color=style.COLOURS[0])
        top.axhline(1, color="k", lw=0.8, ls="--")
        top.axvline(mode.bad, color=style.COLOURS[1], lw=1, ls=":", label="fails")
        if mode.good != mode.bad:
            top.axvline(mode.good, color=style.COLOURS[2], lw=1, ls="-.", label="remedy")
        top.set(title=mode.name, xlabel=mode.parameter, ylabel=mode.quantity)
        top.legend(frameon=False, fontsize=8)
        if mode.xs[0] > 0 and mode.xs[-1] / mode.xs[0] > 100:
            top.set(xscale="log", yscale="log")
        colours = {
            remedy: iter(style.COLOURS[i] for i in pair)
            for remedy, pair in ((False, (1, 4)), (True, (2, 0)))
        }
        for run, dashes in zip(mode.runs, ("-", "--", "-.", ":"), strict=False):
            error = np.where(np.isfinite(run.error), run.error, np.nan)
            bottom.semilogy(
                every * np.arange(error.size),
                error,
                dashes,
                color=next(colours[run.remedy]),
                label=run.name,
            )
        bottom.set(xlabel="update", ylabel=r"$\max\ |Q - Q^*|$")
        bottom.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"expected updates of whole problems; the network of panel 1 from seed {seed}", fontsize=9
    )
    for ax in axes.flat:
        style.tidy(ax)
    output.save_figure(figure, out, dpi=110)


def _write(config: FailureModesConfig, rows: list[dict[str, Any]], modes: list[Mode]) -> None:
    last = [_number(row["last"]) for row in rows]
    rows = [
        {**row, "first": float(row["first"]), "last": end}
        for row, end in zip(rows, last, strict=True)
    ]
    curves = [
        {
            **mode._asdict(),
            "xs": [_number(x) for x in mode.xs],
            "ys": [_number(y) for y in mode.ys],
            "runs": [
                {**run._asdict(), "error": [_number(e) for e in run.error[::EVERY]]}
                for run in mode.runs
            ],
        }
        for mode in modes
    ]
    output.write_json(
        Path(config.json),
        {"config": dataclasses.asdict(config), "rows": rows, "every": EVERY, "modes": curves},
    )


def _number(value: float) -> float | None:
    """For JSON, which has no infinity, and no use for the digits that nobody sees."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


def redraw(path: Path, out: Path) -> None:
    """The figure from a file that `--json` wrote. Raises UserError if it is none."""
    with output.expecting(
        f"{str(path)!r} holds no curves of experiments.failure_modes; make it anew with its --json"
    ):
        data = json.loads(path.read_text())
        modes = [
            Mode(
                **{
                    **mode,
                    "xs": np.array(mode["xs"]),
                    "ys": np.array(mode["ys"], np.float64),
                    "runs": _runs(mode["runs"]),
                }
            )
            for mode in data["modes"]
        ]
        every, seed = data["every"], data["config"]["seed"]
    draw(modes, out, seed, every)


def _runs(rows: list[dict[str, Any]]) -> list[Run]:
    return [Run(row["name"], row["remedy"], np.array(row["error"], np.float64)) for row in rows]


if __name__ == "__main__":
    flags.define(FailureModesConfig)
    flags.run(main)
