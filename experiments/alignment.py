"""The paper's alignment experiment (section 5.2, Figures 3 and 10 to 14): PreQN and TD3, each with sin and with relu.

    python -m experiments.alignment --root=runs/paper --seeds=0,1,2 --num_steps=100000 --envs=HalfCheetah-v5,Walker2d-v5

makes the runs that are not there yet, one process each; those of `experiments.benchmark` in the same root are taken as they
are. Stop it with Ctrl-C whenever you like: the same command, or one without the flags that the plan in root knows, goes on.
"""

from experiments import flags, plan

KIND = plan.Kind("alignment", ("preqn-sin", "preqn-relu", "td3-sin", "td3-relu"), tuple(range(3)))


def main(argv: list[str]) -> int:
    config = flags.parse(plan.PlanConfig)
    status, _ = plan.make(KIND, config, argv[1:])
    return status


if __name__ == "__main__":
    flags.define(plan.PlanConfig)
    flags.run(main)
