"""Command lines that make no sense get one sentence, before anything is done or written."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags
from commands import CHEAP, ROOT, SMALL, call, finished, start

from experiments import play
from experiments.kit import flags, output
from preqn_jax.options import UserError
from preqn_jax.training.config import LoopConfig


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--batch_size=100000000000"],
            "batch_size is 100000000000, but it must be at least 1 and",
        ),
        (["--num_steps=99999999999999999950"], "must be at least 1 and below 2147483648"),
        (["--replay_capacity=-3"], "replay_capacity is -3"),
        (["--batch_size=1000000000"], "for batch_size=1000000000, but there are"),
        (
            ["--num_steps=2000000000", "--replay_capacity=2000000000"],
            "for replay_capacity=2000000000, but there are",
        ),
        (["--algorithm=preqn", "--temperature=0.2"], "temperature is 0.2, but the policy of preqn"),
        (["--algorithm=td3", "--automatic_temperature"], "use --algorithm=sac"),
    ],
)
def test_what_cannot_be_trained_touches_nothing(args, words, capsys):
    assert call("--env=probe/delay", "--logdir=x", *SMALL, *args) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not Path("x").exists()


NONE = "--xla_force_host_platform_device_count=0"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("NPROC", "x", "NPROC is 'x', but it must be a number of threads"),
        ("NPROC", "0", "NPROC is '0'"),
        ("JAX_ENABLE_X64", "banana", "'banana' for environment 'JAX_ENABLE_X64'; unset that"),
        pytest.param("JAX_PLATFORMS", "cpu,", "unset JAX_PLATFORMS=cpu,", marks=pytest.mark.slow),
        pytest.param("XLA_FLAGS", NONE, f"unset XLA_FLAGS={NONE}", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORMS", "foo", "unset JAX_PLATFORMS=foo", marks=pytest.mark.slow),
        pytest.param("JAX_PLATFORMS", "cuda", "unset JAX_PLATFORMS=cuda", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_variable_of_the_environment_is_one_sentence(variable, value, words, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), variable: value}
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        "--env=probe/delay",
        f"--logdir={tmp_path}/x",
    ]
    ended = subprocess.run([*command, *SMALL], env=env, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1 and words in ended.stderr
    assert ended.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"MUJOCO_GL": "banana"}, "from preqn_jax import envs\nenvs.spec('Hopper-v5')"),
        ({"MPLBACKEND": "banana"}, "from experiments.kit import output"),
        ({"MATPLOTLIBRC": "rc"}, "from experiments.kit import output\n" + "DRAW"),
    ],
)
def test_what_others_have_set_is_a_sentence_or_does_not_matter(variables, code):
    """A library to draw with that there is none of, a window to draw in, fonts by TeX."""
    Path("rc").write_text("text.usetex: True\n")
    drawn = "output.plt.title('x')\noutput.plt.savefig('x.png')\n"
    code = code.replace("DRAW", f"{drawn}assert not output.plt.rcParams['text.usetex']")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if "MUJOCO_GL" in variables:
        said = "UserError: MuJoCo does not start with MUJOCO_GL=banana (invalid value"
        assert ended.stderr.splitlines()[-1].endswith("unset it") and said in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr


def test_a_file_that_may_not_be_used_is_one_sentence(monkeypatch, capsys):
    def denied(argv):
        raise PermissionError(13, "Permission denied", "runs/x/config.json")

    assert flags.guard(denied, []) == 1
    said = "error: cannot use 'runs/x/config.json': Permission denied\n"
    assert capsys.readouterr().err == said


def test_a_flagfile_that_is_no_text_is_one_sentence():
    Path("flags").write_bytes("--seeds=1".encode("utf-16"))
    with pytest.raises(SystemExit, match="error: a --flagfile is not text in UTF-8"):
        flags._parsed(["train", "--flagfile=flags"])


def test_a_command_that_takes_its_run_as_a_word_has_no_flag_for_it(monkeypatch):
    values = absl_flags.FlagValues()
    flags.define(play.PlayConfig, values=values)
    values(["play"])
    said = "config.json is not a run's config.json; give another `logdir`, or say `trust=True`"
    assert flags.in_flags(said).endswith("give another --logdir, or say --trust=True")
    monkeypatch.setattr(absl_flags, "FLAGS", values)
    assert flags.in_flags(said).endswith("give another run directory, or say --trust=True")


def test_only_names_of_ours_are_flags():
    """Names that other packages quote in a message stay as they are."""
    said = "cannot make `env='Pendulm-v1'`: no `Pendulm`, did you mean: `Pendulum`"
    assert flags.in_flags(said).endswith("--env=Pendulm-v1: no `Pendulm`, did you mean: `Pendulum`")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("preqn_jax.training.session", "K is singular: use --solver=eigh, or lower --eta"),
        ("jax.compiler", "K is singular: use `solver=eigh`, or lower `eta`"),
    ],
)
def test_what_the_library_warns_of_names_flags_on_a_command_line(name, words):
    said = "%s: use `solver=eigh`, or lower `eta`"
    record = logging.LogRecord(name, logging.WARNING, "", 0, said, ("K is singular",), None)
    assert flags.translated(record) and record.getMessage() == words


@pytest.mark.parametrize(
    ("path", "picture", "words"),
    [
        ("x.xyz", True, r"cannot write 'x.xyz': pictures end in .*\.png"),
        ("run", True, "pictures end in"),
        ("folder", True, "it is a folder"),
        ("folder", False, "it is a folder"),
        ("/dev/null/x", False, "'/dev/null' is not a folder to write to; give another --json"),
        ("file/x/y.json", False, "file' is not a folder to write to"),
    ],
)
def test_what_could_not_be_written_is_said_before_any_work(path, picture, words):
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(UserError, match=words):
        output.check("json", path, picture=picture)


@pytest.mark.parametrize(
    ("path", "picture"), [("", True), ("a/b/c.PDF", True), ("new.json", False)]
)
def test_what_can_be_written_passes_and_nothing_is_made(path, picture):
    output.check("out", path, picture=picture)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("text", ["1e6", "1_000_000", "1000000", "1.0e6"])
def test_whole_numbers_may_be_written_as_people_write_them(text):
    (config,) = flags.read([f"--num_steps={text}", "--seeds=1_0,2e1"], LoopConfig)
    assert config.num_steps == 1_000_000 and config.seeds == (10, 20)


@pytest.mark.parametrize("args", [["--num_steps=1.5"], ["--num_steps=inf"], ["--seeds=0,1.5"]])
def test_what_is_no_whole_number_is_refused(args):
    with pytest.raises(UserError):
        flags.read(args, LoopConfig)


@pytest.mark.slow
def test_an_environment_of_a_module_goes_by_module_and_name(tmp_path, monkeypatch, capsys):
    """As in Gymnasium: importing the module registers the environment."""
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n"
        'gymnasium.register("Mine-v0", "gymnasium.envs.classic_control:PendulumEnv",'
        " max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small = [*CHEAP, "--num_steps=300", "--eval_every=300"]
    assert call("--env=my_envs:Mine-v0", "--logdir=x", *small) == 0
    out, err = capsys.readouterr()
    assert "my_envs:Mine-v0, 300 steps" in out
    assert "ddpg-relu, networks of 16x16, on my_envs:Mine-v0: 300 steps for each of 1 seed" in err
    assert "to watch: python -m experiments.plot x, or" in err


@pytest.mark.parametrize("own", [False, True])
def test_only_a_cache_of_ours_has_a_bound(tmp_path, own):
    """In a folder that other programs write to as well, JAX would warn of every entry of theirs if
    there were a bound, and keep none of ours.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if own:
        env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "mine")
    line = (
        "import experiments, jax; c = jax.config; "
        "print(c.jax_compilation_cache_max_size, c.jax_compilation_cache_dir)"
    )
    out = subprocess.check_output([sys.executable, "-c", line], env=env, text=True)
    bound, folder = out.split(maxsplit=1)
    assert int(bound) == (-1 if own else 2**31)
    assert Path(folder.strip()).is_relative_to(tmp_path / ("mine" if own else "preqn_jax"))


@pytest.mark.parametrize("seeds", [(0,), (3,), (0, 1)])
def test_seeds_that_a_sentence_names_are_taken_by_the_flag(seeds):
    said = flags.in_flags(f"finish it first, with `seeds={seeds}`, and then")
    word = said.split()[4].rstrip(",")
    assert word == f"--seeds={','.join(map(str, seeds))}"
    (config,) = flags.read([word], LoopConfig)
    assert config.seeds == seeds


def test_a_range_beyond_all_bounds_is_refused_before_it_is_made():
    with pytest.raises(
        UserError, match="0:1e12 has 1,000,000,000,000 numbers, but at most 100,000"
    ):
        flags.read(["--seeds=0:1e12"], LoopConfig)


MODULES = sorted(p for p in ROOT.glob("experiments/*.py") if "flags.run(" in p.read_text())
USED = {
    "rivals": ("root", "envs", "report", "cost"),
    "benchmark": ("root", "until", "report"),
    "plot": ("out", "format"),
}


@pytest.mark.parametrize(
    "module",
    [pytest.param(p.stem, marks=[pytest.mark.slow] * (p.stem != "plot")) for p in MODULES],
)
def test_every_command_starts_and_its_help_names_the_flags_that_its_text_uses(module):
    code, out, err = finished(start("--help", module=f"experiments.{module}"))
    assert code == 0 and not err and f"python -m experiments.{module}" in out, err
    for name in USED.get(module, ()):
        assert f"  --{name}" in out or f"  --[no]{name}" in out


def test_a_run_that_goes_on_past_its_random_steps_is_not_said_to_wait(tmp_path, capsys):
    where = f"--logdir={tmp_path / 'x'}"
    assert call("--env=probe/delay", *CHEAP, "--num_steps=300", "--eval_every=300", where) == 0
    assert "the first 200 without updates" in capsys.readouterr().err
    assert call("--env=probe/delay", *CHEAP, where) == 0
    assert "without updates" not in capsys.readouterr().err
    assert call("--env=probe/delay", *CHEAP, "--log_every=200", where) == 0
    assert "made with log_every=100; nothing to do" in capsys.readouterr().out
