"""The paper's benchmark (section 5.2, Figure 2): PreQN beside TD3, SAC and DDPG on five environments.

    python -m experiments.benchmark --root=runs/paper --seeds=0,1,2 --num_steps=100000 --envs=HalfCheetah-v5,Walker2d-v5

makes the runs that are not there yet, one process each. Stop it with Ctrl-C whenever you like: the same command, or one without
the flags that the plan in root knows, goes on from there. What follows -- goes to every run, as in -- --solver=eigh.
"""

from experiments import flags, plan

KIND = plan.Kind("benchmark", ("preqn-sin", "td3-relu", "sac-relu", "ddpg-relu"), tuple(range(7)))


def main(argv: list[str]) -> int:
    config = flags.parse(plan.PlanConfig)
    status, _ = plan.make(KIND, config, argv[1:])
    return status


if __name__ == "__main__":
    flags.define(plan.PlanConfig)
    flags.run(main)
