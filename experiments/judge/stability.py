"""Which seeds of a run break the rule of stability (`section_5_2.RULES`)."""

from typing import NamedTuple

import numpy as np

from experiments.kit.curves import Curves, Lines

FEW = 5  # evaluations whose mean tells learning from noise
_FINITE = ("critic/q_mean", "critic/td_abs", "critic/norm", "actor/norm", "eval/return_mean")


class Faults(NamedTuple):
    """The seeds of a run that break each part of the rule; None where the records cannot tell."""

    a: list[int]
    b: list[int] | None
    c: list[int] | None


def faults(run: Curves) -> Faults:
    """The seeds of a run that break the rule of stability."""
    returns, spreads = (run.metric(name)[1] for name in ("eval/return_mean", "eval/return_std"))
    a, b, c = [], [], []
    told, enough = True, True
    for i, (seed, lines) in enumerate(zip(run.seeds, run.lines, strict=True)):
        if seed in run.diverged or any(
            line.get(name, 0) is None for line in lines for name in _FINITE
        ):
            a.append(seed)
        finite = np.isfinite(returns[i])
        spread = spreads[i][finite] if spreads.shape == returns.shape else np.array(np.nan)
        if seed not in a:  # a seed that diverged needs no further test
            means = np.sum(finite) > FEW  # else there is one at most
            enough = enough and bool(means and np.isfinite(spread).any())
        if collapsed(returns[i][finite], spread):
            b.append(seed)
        q, worth = (_values(lines, name) for name in ("critic/q_mean", "eval/discounted_max"))
        told = told and bool(q and worth)
        if q and worth and max(q) > max(worth):
            c.append(seed)
    return Faults(a, b if b or enough else None, c if c or told else None)


def collapsed(returns: np.ndarray, spread: np.ndarray | float) -> bool:
    """Whether one seed breaks rule (b): from the mean returns `[T]` of its evaluations, and the
    spread over the episodes of each, or one spread for all. Later evaluations change nothing.
    """
    if len(returns) < FEW:
        return False
    windows = np.convolve(returns, np.ones(FEW) / FEW, "valid")
    gain = np.maximum.accumulate(windows) - returns[0]  # of the best mean so far
    fallen = windows < returns[0] + gain / 2
    spread = np.broadcast_to(spread, returns.shape)
    count = np.cumsum(np.isfinite(spread))
    usual = np.where(count, np.nancumsum(spread) / np.maximum(count, 1), np.inf)[FEW - 1 :]
    return bool(np.any((gain > usual) & fallen))


def _values(lines: Lines, name: str) -> list[float]:
    return [line[name] for line in lines if line.get(name) is not None]
