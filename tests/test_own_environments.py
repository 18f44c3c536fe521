"""A user's own environment and wrapper, in the current folder, through the commands."""

import re
from pathlib import Path

import mujoco
import numpy as np
import pytest
from commands import ROOT, SMALL, finished, start

from experiments.kit import flags
from preqn_jax import envs
from preqn_jax.training.config import RunConfig

PAGE = (ROOT / "docs/extend.md").read_text()


def block(words):
    """The only Python block of the page that contains these words."""
    (found,) = [one for one in re.findall(r"```python\n(.*?)```", PAGE, re.S) if words in one]
    return found


def command(module, *args):
    """Runs a command from a user's folder. Returns its exit status and output."""
    return finished(start(*args, module=module, cwd=None))


@pytest.mark.slow
def test_a_module_of_the_current_folder_serves_every_command():
    Path("my_envs.py").write_text(block("Line-v0"))
    kwargs, wrappers = '--env_kwargs={"gain": 0.3}', "--wrappers=my_envs:Shift(by=2)"
    mine = [*SMALL[:-1], "--num_steps=300", "--eval_every=300", "--workers=2", "--seeds=0,1"]
    train = ["experiments.train", "--env=my_envs:Line-v0", *mine, "--logdir=x"]
    code, _, err = command(*train, kwargs, wrappers, "--diagnose_every=300")
    assert code == 0, err
    code, _, err = command(*train, kwargs, "--diagnose_every=300")
    assert code == 1 and err.count("\n") == 1 and "holds a run with wrappers=['my_envs:S" in err
    for name, more, without in (
        ("play", ["--episodes=2"], 1),
        ("export", ["--out=p.npz"], 1),
        ("diagnose", ["--out=d"], 0),  # only the attribution needs it
    ):
        code, out, err = command(f"experiments.{name}", "x", *more)
        assert code == without and "module would be imported and run; if you trust it" in out + err
        code, out, err = command(f"experiments.{name}", "x", "--trust", *more)
        assert code == 0 and "the transitions that moved Q cannot be named" not in out, err
    assert Path("p.npz").exists() and Path("d/diagnosis.json").exists()


def test_wrappers_have_commas_of_their_own():
    texts = "gymnasium.wrappers:RescaleAction(min_action=-1,max_action=1),a:B,c:D(x=[1,2],y=(3,4))"
    (run,) = flags.read([f"--wrappers={texts}"], RunConfig)
    assert run.wrappers == (
        "gymnasium.wrappers:RescaleAction(min_action=-1,max_action=1)",
        "a:B",
        "c:D(x=[1,2],y=(3,4))",
    )
    assert flags.read([], RunConfig)[0].wrappers == ()
    assert flags.read(['--env_kwargs={"a": [1]}'], RunConfig)[0].env_kwargs == {"a": [1]}


def test_a_sentence_says_wrappers_as_a_shell_takes_them():
    words = "give `wrappers=['m:B(low=-1,high=1)', 'g:F']` or `env_kwargs={\"a\": 2}`"
    expected = "give --wrappers='m:B(low=-1,high=1),g:F' or --env_kwargs='{\"a\": 2}'"
    assert flags.in_flags(words) == expected


@pytest.mark.slow
def test_the_agent_of_the_page_trains_where_actions_are_finitely_many(capsys):
    exec(block("CartPole-v1"), {})
    step, total = capsys.readouterr().out.split()
    assert step == "300" and 5 <= float(total) <= 500


@pytest.mark.slow
def test_the_control_suite_comes_by_way_of_shimmy():
    """Needs MuJoCo 3, as the FAQ says: dm_control does not run with MuJoCo 4."""
    for name in ("shimmy", "dm_control"):
        pytest.importorskip(name)
    if not mujoco.__version__.startswith("3."):
        pytest.skip("dm_control does not run with MuJoCo 4")
    flat = ("gymnasium.wrappers:FlattenObservation",)
    env = envs.make(envs.described("shimmy:dm_control/cartpole-swingup-v0", None, flat), 1)
    assert env.reset([0]).shape == (1, 5) and env.spec.action_size == 1
    outs = [env.step(np.float32([[0.5]])) for _ in range(1000)]
    assert all(0 <= out.reward[0] <= 1 for out in outs) and outs[-1].truncated[0]
    assert not any(out.terminated[0] for out in outs)
