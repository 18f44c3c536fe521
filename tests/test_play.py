"""Playing episodes from a run's newest checkpoint, and drawing them."""

import gc
import importlib.util
import os
import resource
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
from commands import finished, start

import after_cases
import preqn_jax
from experiments import play
from experiments.kit import flags
from preqn_jax import actions
from preqn_jax.options import UserError
from preqn_jax.training import files
from preqn_jax.types import Spec

reacher = after_cases.reacher


def options(*args):
    return flags.read(args, play.PlayConfig)[0]


def by_hand(path, seed, episode_seed):
    """The return and the length of an episode, by Gymnasium alone."""
    policy, env = preqn_jax.load(path).policy(seed), gymnasium.make("Reacher-v5")
    obs, total, length, ended = *env.reset(seed=episode_seed)[:1], 0.0, 0, False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(np.asarray(policy(obs)))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
        assert length <= 50, "an episode is to end"
    return total, length


def test_episodes_are_those_of_the_policy_and_the_same_each_time(reacher, capsys):
    path, _ = reacher
    before = files.digests(path)
    returns, lengths = play.play(path, options("--episodes=3", "--episode_seed=7"))
    for i in range(3):
        total, length = by_hand(path, 0, 7 + i)
        assert abs(returns[i] - total) < 1e-3 * abs(total) and lengths[i] == length == 50
    assert len(set(returns)) == 3
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[1:4]] == [["0", "7"], ["1", "8"], ["2", "9"]]
    mean, std = sum(returns) / 3, (sum((r - sum(returns) / 3) ** 2 for r in returns) / 2) ** 0.5
    assert f"seed 0: return {mean:.1f} +- {std:.1f}, length 50.0 +- 0.0, over 3 ep" in out[4]
    again, _ = play.play(path, options("--episodes=1", "--episode_seed=8"))
    assert again[0] == returns[1]  # bit for bit, whatever was played before
    other, _ = play.play(path, options("--episodes=1", "--episode_seed=8", "--seed=1"))
    assert abs(other[0] - by_hand(path, 1, 8)[0]) < 1e-3 * abs(other[0]) and other[0] != again[0]
    assert files.digests(path) == before  # nothing is written there


@pytest.mark.slow
def test_a_run_that_is_going_on_can_be_played():
    """Even while its lock is held."""
    small = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
    every = {"checkpoint_every": 50, "eval_every": 100, "eval_episodes": 1}
    training = preqn_jax.train("ddpg", "probe/delay", num_steps=100, logdir="x", **small, **every)
    next(training)
    there = sorted(path for path in Path("x").rglob("*"))
    _, lengths = play.play(Path("x"), options("--episodes=2"))
    assert len(lengths) == 2 and sorted(path for path in Path("x").rglob("*")) == there
    training.close()


def test_an_episode_is_cut_off(reacher):
    assert play.play(reacher[0], options("--episodes=1", "--max_steps=9"))[1].tolist() == [9]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_video_shows_the_first_episode(reacher, ending):
    """In a process of its own, as MuJoCo chooses how to draw when it is imported."""
    if ending == "mp4" and not importlib.util.find_spec("imageio_ffmpeg"):
        pytest.skip("imageio-ffmpeg is not installed")
    out = Path(f"new/folder/x.{ending}").absolute()
    args = [str(reacher[0]), "--episodes=2", f"--video={out}", "--video_steps=20"]
    code, text, err = finished(start(*args, module="experiments.play"))
    if "MuJoCo finds neither" in err:
        pytest.skip("neither EGL nor OSMesa is here")
    assert code == 0 and "fork" not in err, err
    frames = (
        imageio.imread(out, index=None) if ending == "gif" else np.stack(list(imageio.imiter(out)))
    )
    # Reacher is drawn 50 times a second, of which a GIF has every second picture.
    assert frames.shape == ((10, 240, 240, 3) if ending == "gif" else (20, 480, 480, 3))
    moved = np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(1, 2, 3))
    assert frames.std() > 10 and (moved > 30).sum() >= 5  # not blank, and not still
    if ending == "gif":
        assert imageio.immeta(out)["duration"] == 40
    played, _ = play.play(reacher[0], options("--episodes=2"))
    shown = [float(line.split()[2]) for line in text.splitlines()[1:3]]
    np.testing.assert_allclose(shown, played, atol=0.051)  # drawing changes nothing
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_what_pygame_draws_is_filmed_too(monkeypatch, capfd):
    pytest.importorskip("pygame", reason="the extra `video` is not installed")
    for name in ("SDL_VIDEODRIVER", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    small = {"hidden_sizes": (8, 8), "start_steps": 50, "update_after": 50, "batch_size": 8}
    list(preqn_jax.train("ddpg", "Pendulum-v1", num_steps=100, logdir="x", **small))
    play.play(Path("x"), options("--episodes=1", "--video=x.gif", "--video_steps=9"))
    frames = imageio.imread("x.gif", index=None)
    assert len(frames) > 3 and np.abs(np.diff(frames.astype(int), axis=0)).max() > 30
    assert "XDG_RUNTIME_DIR" not in capfd.readouterr().err


def test_the_camera_goes_along_with_what_runs():
    """Hopper names a body to track, and yet its default camera (-1) stands still."""
    for env_id, moved in (("HalfCheetah-v5", 0), ("Hopper-v5", 0), ("Reacher-v5", -1)):
        env: Any = gymnasium.make(env_id)
        play._follow([env])
        assert env.unwrapped.mujoco_renderer.camera_id == moved
        env.close()


def test_what_draws_is_found_out_in_another_process(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match="MUJOCO_GL is 'nonsense', with which MuJoCo cannot draw"):
        play._choose_gl()
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(play, "_DRAW", "import os, sys; sys.exit(os.environ['MUJOCO_GL'] == 'egl')")
    assert play._choose_gl() and os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(play, "_DRAW", "raise SystemExit(1)")
    assert not play._choose_gl() and "MUJOCO_GL" not in os.environ


def test_without_anything_to_draw_with_the_package_is_named(reacher, monkeypatch):
    monkeypatch.setattr(play, "_choose_gl", lambda: False)
    with pytest.raises(UserError, match="'Reacher-v5': MuJoCo finds neither EGL nor OSMesa; .*apt"):
        play.play(reacher[0], options("--video=x.gif"))
    assert not Path("x.gif").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seed=5"], "there is no seed 5; this run has 0, 1"),
        (["--episodes=0"], "episodes is 0, but it must be at least 1"),
        (["--episode_seed=-1"], "episode_seed is -1, but it must be at least 0"),
        (["--video=x.avi"], "cannot write 'x.avi': videos end in .mp4 or .gif"),
        (["--video=x"], "cannot write 'x': videos end in"),
        (
            ["--video=/dev/null/x.gif"],
            "'/dev/null' is not a folder to write to; give another --video",
        ),
        (["--video=x.gif", "--human"], "give --video or --human"),
        (["--human"], "there is no display for a window; give a file instead"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(reacher, args, words, monkeypatch):
    for screen in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(screen, raising=False)
    monkeypatch.setattr(play, "_choose_gl", lambda: True)
    with pytest.raises(UserError, match=words):
        play.play(reacher[0], options(*args))


def test_an_mp4_without_its_writer_is_one_sentence(reacher, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg, or give a --video that ends"):
        play.play(reacher[0], options("--video=x.mp4"))


class Blank(gymnasium.Env):
    """Has pictures of noise, which need room."""

    def __init__(self):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def render(self):
        return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("fault", ["a full disk", "no ffmpeg", "pictures are lost"])
def test_a_video_that_is_not_whole_is_an_error_and_replaces_no_other(fault, monkeypatch):
    writer = pytest.importorskip("imageio_ffmpeg", reason="the extra `video` is not installed")
    Path("x.mp4").write_text("a better one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "a full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    elif fault == "no ffmpeg":
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    else:
        monkeypatch.setattr(writer, "count_frames_and_secs", lambda path: (29, 1.5))
    try:
        refused = pytest.raises(UserError, match=r"^cannot write '.*x.mp4.*; (look|give another)")
        with refused, play._film(options("--video=x.mp4"), [Blank()]) as show:
            for _ in range(30):
                show()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path("x.mp4").read_text() == "a better one"


def test_what_is_no_run_or_has_no_picture_is_one_sentence(monkeypatch):
    monkeypatch.setattr(play, "_choose_gl", lambda: True)
    with pytest.raises(UserError, match="'nowhere' is not a run directory: it has no config.json"):
        play.play(Path("nowhere"), options())
    after_cases.write_run("x", "probe/delay", seeds=(0,))
    with pytest.raises(UserError, match="'probe/delay' has no picture; leave out --video and"):
        play.play(Path("x"), options("--video=x.gif"))
    assert not Path("x.gif").exists()
    files.remove(Path("x/checkpoints"))
    with pytest.raises(UserError, match="the run 'x' has no checkpoints"):
        play.play(Path("x"), options())
    Path("x/checkpoints").mkdir()
    with pytest.raises(UserError, match="the run 'x' has no checkpoint yet"):
        play.play(Path("x"), options())
    config = Path("x/config.json")
    config.write_text(config.read_text().replace("probe/delay", "evil_module:E-v0"))
    with pytest.raises(UserError, match="whose module would be imported and run; if you trust it"):
        play.play(Path("x"), options())


def test_arguments_of_a_command_are_beside_those_of_the_run(reacher):
    kwargs = '--env_kwargs={"max_episode_steps": 7}'
    assert play.play(reacher[0], options("--episodes=1", kwargs))[1].tolist() == [7]
    dear = '--env_kwargs={"max_episode_steps": 7, "reward_control_weight": 50}'
    cheap, _ = play.play(reacher[0], options("--episodes=1", kwargs))
    assert play.play(reacher[0], options("--episodes=1", dear))[0][0] < cheap[0]
    with pytest.raises(UserError, match="'Reacher-v5' has no argument 'limit', which env_kwargs"):
        play.play(reacher[0], options('--env_kwargs={"limit": 3}'))


def test_arguments_that_change_the_actions_are_one_sentence():
    """Another number of actions is cut from the same [-1, 1], and each would mean another one."""
    four, three = (actions.spec(5, count) for count in (4, 3))
    boxes = Spec(5, 1, -np.ones(1), np.ones(1))
    for there, words in ((three, "3 actions"), (boxes, "actions of size 1")):
        with pytest.raises(UserError, match=f"has {words} with these .* learned with 4 actions;"):
            play._check_sizes("x", four, there)
    play._check_sizes("x", four, four)


def test_arguments_that_change_what_is_seen_are_one_sentence():
    after_cases.write_run("x", "Swimmer-v5", seeds=(0,))
    seeing = '--env_kwargs={"exclude_current_positions_from_observation": false}'
    with pytest.raises(UserError, match="has observations of size 10 with these --env_kwargs, but"):
        play.play(Path("x"), options(seeing))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{bad", "but it is not JSON \\(Expecting property name"),
        ("[1, 2]", "but \\[1, 2\\] is not an object"),
        ("3", "but 3 is not an object"),
    ],
)
def test_what_is_no_json_object_is_one_sentence(text, words):
    with pytest.raises(UserError, match=f"must be a JSON object of arguments, as in .*, {words}"):
        options(f"--env_kwargs={text}")
    assert options("--env_kwargs={}").env_kwargs is None is options().env_kwargs


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_picture_that_finds_no_room_is_an_error_and_prints_nothing():
    """imageio's own writer would write again when it is deleted, and print the error."""
    limits, noise = resource.getrlimit(resource.RLIMIT_FSIZE), np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        too_large = pytest.raises(OSError, match="File too large")
        with too_large, play._writer(Path("x.gif"), 25) as writer:
            for _ in range(3):
                writer.append_data(noise.integers(0, 255, (64, 64, 3), np.uint8))
        del writer, too_large
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
