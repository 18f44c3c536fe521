"""Run directories with made-up records, to test reports and verdicts."""

import json
from pathlib import Path

from experiments.kit import curves, flags
from preqn_jax.training import run as training

SIX = ("preqn-sin", "td3-relu", "sac-relu", "ddpg-relu", "preqn-relu", "td3-sin")


def text(lines):
    """The content of a metrics.jsonl with these records."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def put(folder, config, lines):
    """Writes a run directory with these settings and records. Returns its path."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "metrics.jsonl").write_bytes(text(lines))
    return folder


def write(
    env,
    variant,
    returns=lambda seed, t: 1000 * t + 10 * seed,
    align=0.99,
    q=5.0,
    worth=100.0,
    seeds=(0, 1, 2),
    end=20,
    num_steps=100_000,
    extra=(),
    update_after=0,
):
    """Writes a run below `r`, with `end` evaluations, one every 5,000 steps. Their returns are
    `returns(seed, t)`, where t is 1/20 for the first evaluation and grows by that.
    """
    config = {"env": env, "algorithm": variant, "seeds": list(seeds), "num_steps": num_steps}
    config["update_after"] = update_after
    lines = []
    for i in range(1, end + 1):
        for seed in seeds:
            step = {"step": 5000 * i, "seed": seed}
            lines.append(
                {**step, "critic/alignment": align, "critic/q_mean": q, "critic/td_abs": 1.0}
            )
            evaluation = {"eval/return_mean": returns(seed, i / 20), "eval/return_std": 1.0}
            lines.append(
                {**step, **evaluation, **({} if worth is None else {"eval/discounted_max": worth})}
            )
    put(Path("r") / env / variant, config, [*lines, *extra])


def begin(run, **fields):
    """Writes the config.json of a plan's run, as experiments.train does."""
    configs = flags.read((f"--num_steps={run.num_steps}", *run.flags), *training.CONFIGS)
    run.folder.mkdir(parents=True)
    described = {**training.plan(*configs).described, **fields}
    (run.folder / "config.json").write_text(json.dumps({"config": described}))


def frozen(step, seed):
    """The record of a seed that diverges while the run's other seeds go on."""
    return {"step": step, "seed": seed, "run/diverged": 1.0, "critic/q_mean": None}


def better(by, slope=1000):
    return lambda seed, t: slope * t + by + 10 * seed


def one(variant="preqn-sin", **fields):
    """A made-up run on HalfCheetah, read back as `Curves`."""
    write("HalfCheetah-v5", variant, **fields)
    (run,), notes = curves.gather(Path("r"), ["HalfCheetah-v5"], [variant])
    return run
