"""Play what a run has learned: episodes without exploration noise, by its newest checkpoint, as
numbers, as a video, or in a window.

    python -m experiments.play runs/x
    python -m experiments.play runs/x --episodes=1 --video=cheetah.mp4

The run may still be training; nothing in its directory is changed. Episode i begins from
`env.reset(seed=episode_seed + i)`, so that the same command plays the same episodes, bit for bit.
"""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
from PIL import Image

import preqn_jax
from experiments.kit import flags, given_runs, output
from experiments.kit.curves import plural
from preqn_jax import envs
from preqn_jax.options import UserError, check, option
from preqn_jax.training import directory, files
from preqn_jax.training.trained import Trained
from preqn_jax.types import Spec

ENDINGS = (".mp4", ".gif")
GIF = (240, 25)  # the most pixels across, and frames a second: for a web page, not for a screen
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
mujoco.Renderer(model, 8, 8).render()
"""
_WINDOW = "import glfw, sys; sys.exit(not glfw.init())"

Show = Callable[[], None]  # takes or shows a picture of the environment as it is now


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """What to play, and how to show it."""

    episodes: int = option(10, "episodes to play", at_least=1)
    seed: int | None = given_runs.seed()
    episode_seed: int = option(
        0, "seed of the first episode; the seed of episode i is larger by i", at_least=0
    )
    max_steps: int = option(10_000, "steps after which an episode is cut off", at_least=1)
    video: str = option("", "write a video of the first episode to this file, .mp4 or .gif")
    video_steps: int = option(1000, "steps that the video shows", at_least=1)
    human: bool = option(False, "show the episodes in a window")
    trust: bool = given_runs.trust()
    env_kwargs: Mapping[str, Any] | None = option(
        None, "arguments for the environment, as JSON, added to or replacing the run's (none)"
    )


def main(argv: list[str]) -> int:
    run = given_runs.parse_one(argv, "play")
    play(run, flags.parse(PlayConfig))
    return 0


def play(run: Path, given: PlayConfig) -> tuple[np.ndarray, np.ndarray]:
    """Plays and prints the episodes of a run. Returns their returns and lengths `[episodes]`.

    Raises UserError if the folder is no run, or if the episodes cannot be shown or written.
    """
    _check(given)
    drawn = bool(given.video) and _choose_gl()
    trained = preqn_jax.load(run, trust=given.trust)
    env_id = trained.config["env"]
    mode = "rgb_array" if given.video else "human" if given.human else None
    source = directory.source(trained.config, f"the run {str(run)!r}", given.trust)
    source, made = _source(envs.described(source, given.env_kwargs), mode)
    vector = envs.make(source, 1)
    try:
        _check_sizes(env_id, trained.spec, vector.spec)
        _check_picture(env_id, mode, made, drawn)
        _follow(made)
        with _film(given, made) as show:
            results = _episodes(vector, _acting(trained, given.seed), given, show)
    finally:
        vector.close()
    returns, lengths = (np.array(column) for column in zip(*results, strict=True))
    seed = trained.seeds[0] if given.seed is None else given.seed
    print(
        f"{env_id}, step {trained.step}, seed {seed}: return {_spread(returns)}, length "
        f"{_spread(lengths)}, over {plural(given.episodes, 'episode')}"
    )
    if given.video:
        print(given.video)
    return returns, lengths


def _episodes(
    vector: envs.VectorEnv, act: Callable[[np.ndarray], Any], given: PlayConfig, show: Show
) -> list[tuple[float, int]]:
    print(f"{'episode':>7} {'seed':>10} {'return':>10} {'length':>7}")
    results = []
    for i in range(given.episodes):
        seed, seen = given.episode_seed + i, show if i == 0 else lambda: None
        results.append(episode(vector, act, seed, given.max_steps, seen))
        print(f"{i:>7} {seed:>10} {results[-1][0]:>10.1f} {results[-1][1]:>7}", flush=True)
    return results


def episode(
    vector: envs.VectorEnv, act: Callable[[np.ndarray], Any], seed: int, most: int, show: Show
) -> tuple[float, int]:
    """The return and the length of one episode, which ends after `most` steps at the latest.

    Args:
      vector: of one environment.
      act: `obs [1, obs] -> action [1, act]` in [-1, 1].
      seed: the environment's.
      most: steps.
      show: called before every step, when the environment is in the state that `act` sees.
    """
    obs, total = vector.reset([seed]), 0.0
    for length in range(1, most + 1):
        show()
        out = vector.step(np.asarray(act(obs)))
        obs, total = out.obs, total + float(out.reward[0])
        if out.terminated[0] or out.truncated[0]:
            return total, length
    return total, most


def _acting(trained: Trained, seed: int | None) -> Callable[[np.ndarray], Any]:
    """The noiseless policy of one seed, as evaluations run it."""
    params, act = trained.agent.policy(trained.state(seed)), trained.agent.act
    compiled = jax.jit(jax.vmap(act, in_axes=(None, 0)))
    return lambda obs: compiled(params, obs)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" + (f" +- {values.std(ddof=1):.1f}" if len(values) > 1 else "")


# --- what is shown --------------------------------------------------------------------------------


def _check(given: PlayConfig) -> None:
    """Raises UserError for what could not be shown or written, before anything is played."""
    check(given)
    if given.video and given.human:
        raise UserError("episodes go to a video or to a window; give --video or --human, not both")
    if given.video and Path(given.video).suffix.lower() not in ENDINGS:
        raise UserError(f"cannot write {given.video!r}: videos end in .mp4 or .gif")
    output.check("video", given.video)
    if given.video.lower().endswith(".mp4") and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UserError(
            "an .mp4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg, or "
            "give a --video that ends in .gif"
        )
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if given.human and sys.platform == "linux" and not any(map(os.environ.get, screens)):
        raise UserError("there is no display for a window; give a file instead: --video=out.gif")


def _source(source: envs.Source, mode: str | None) -> tuple[envs.Source, list[gymnasium.Env]]:
    """The source of the environment; and a list that will hold the environment itself once it is
    made, if it is one of Gymnasium's.
    """
    from preqn_jax.envs import gym  # MuJoCo looks at MUJOCO_GL when it is imported

    made: list[gymnasium.Env] = []
    if envs.pure(source) is not None:
        return source, made
    whole: Any = envs.described(source, {"render_mode": mode} if mode else None)

    def make() -> gymnasium.Env:
        with warnings.catch_warnings(action="ignore"):  # `_check_picture` reports unknown modes
            made.append(gym.single(whole))
        return made[-1]

    make.__qualname__ = envs.name(source)  # what messages call it
    return make, made


def _check_sizes(env_id: str, learned: Spec, there: Spec) -> None:
    """Raises UserError if --env_kwargs changed the size of observations, or the actions."""
    for describe in (_observations, _actions):
        old, new = describe(learned), describe(there)
        if old != new:
            raise UserError(
                f"environment {env_id!r} has {new} with these --env_kwargs, but the run learned "
                f"with {old}; leave out the argument that changes them"
            )


def _observations(spec: Spec) -> str:
    return f"observations of size {spec.obs_size}"


def _actions(spec: Spec) -> str:
    finite = spec.num_actions is not None
    return f"{spec.num_actions} actions" if finite else f"actions of size {spec.action_size}"


def _check_picture(env_id: str, mode: str | None, made: list[gymnasium.Env], drawn: bool) -> None:
    """Raises UserError where the environment cannot be drawn in this mode."""
    if mode is None:
        return
    if not made or mode not in made[0].metadata.get("render_modes", ()):
        raise UserError(f"environment {env_id!r} has no picture; leave out --video and --human")
    of_mujoco = hasattr(made[0].unwrapped, "mujoco_renderer")
    if mode == "human" and of_mujoco and not _succeeds(_WINDOW):
        raise UserError(
            "the display takes no window of MuJoCo's; give a file instead: --video=out.gif"
        )
    if mode == "rgb_array" and not drawn and of_mujoco:
        raise UserError(
            f"cannot draw {env_id!r}: MuJoCo finds neither EGL nor OSMesa; install one, as with "
            "apt install libegl1"
        )


def _follow(made: list[gymnasium.Env]) -> None:
    """Lets the camera follow the body that moves: by default pictures of Gymnasium 1.4 have a fixed
    camera, even where an environment names a body to track.
    """
    renderer = getattr(made[0].unwrapped, "mujoco_renderer", None) if made else None
    if renderer is not None:
        names = [renderer.model.camera(i).name for i in range(renderer.model.ncam)]
        if "track" in names:
            renderer.camera_id = names.index("track")


@contextlib.contextmanager
def _film(given: PlayConfig, made: list[gymnasium.Env]) -> Iterator[Show]:
    """Yields a function that takes a picture of the environment as it is; the video is written at
    the end. Raises UserError if the environment cannot be drawn, or the file cannot be written.
    """
    if not given.video:
        yield lambda: None
        return
    path, env = Path(given.video), made[0]
    fps = env.metadata.get("render_fps") or 30
    every = -(-fps // GIF[1]) if path.suffix.lower() == ".gif" else 1
    count = itertools.count()

    def show() -> None:
        step = next(count)
        if step < given.video_steps and step % every == 0:
            with warnings.catch_warnings():  # ffmpeg is started with the first picture
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                picture = _picture(env, path)
                with _making(path):
                    writer.append_data(picture)

    with files.writing(repr(given.video), "; give another --video", UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name.lower()  # its ending tells what to write
            with _writer(written, fps / every) as writer:
                yield show
            with _making(path):
                _check_film(written, -(-min(next(count), given.video_steps) // every))
            os.replace(written, path)


@contextlib.contextmanager
def _making(path: Path) -> Iterator[None]:
    """Turns an error of the program that makes a video into a UserError."""
    try:
        yield
    except Exception as error:  # imageio's errors are of many kinds where ffmpeg does not start
        if isinstance(error, OSError) and error.strerror:
            raise
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot write {str(path)!r}: {words}; look for room on the disk, or give a --video "
            "that ends in .gif"
        ) from error


def _check_film(written: Path, pictures: int) -> None:
    """Raises an error where a video lacks pictures: ffmpeg tells nobody that a disk is full."""
    if written.suffix == ".gif":
        return
    import imageio_ffmpeg  # in the extra `video`

    there = imageio_ffmpeg.count_frames_and_secs(str(written))[0] if written.exists() else 0
    if there != pictures:
        raise ValueError(f"ffmpeg wrote {there} of {pictures} pictures")


@contextlib.contextmanager
def _writer(path: Path, fps: float) -> Iterator[Any]:
    if path.suffix != ".gif":
        with imageio.get_writer(path, mode="I", fps=fps, macro_block_size=2) as writer:
            yield writer
        return
    # Not into the file: on a full disk imageio would write the rest again, and print an error.
    content = io.BytesIO()
    options = {"format": "GIF", "mode": "I", "duration": 1000 / fps, "loop": 0}
    with imageio.get_writer(content, **options) as writer:
        yield writer
    path.write_bytes(content.getvalue())


def _picture(env: gymnasium.Env, path: Path) -> np.ndarray:
    """A picture of the environment, `[height, width, 3]` uint8; for a GIF smaller, and in few
    colours.
    """
    try:
        frame = np.asarray(env.render(), np.uint8)
    except Exception as error:  # drivers and missing packages raise errors of many kinds
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot draw the environment: {words}; leave out --video") from error
    if path.suffix.lower() == ".gif":
        small = Image.fromarray(frame)
        small.thumbnail((GIF[0], frame.shape[0]), Image.Resampling.LANCZOS)
        frame = np.asarray(small.quantize(64, dither=Image.Dither.NONE).convert("RGB"))
    return frame


def _choose_gl() -> bool:
    """Sets MUJOCO_GL, which MuJoCo reads on import, to a library that draws without a screen on
    this machine, and keeps pygame from looking for a screen. Returns whether MuJoCo can draw.
    Raises UserError if MUJOCO_GL is already set, to something that cannot draw.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # others complain about XDG_RUNTIME_DIR
    given = os.environ.get("MUJOCO_GL")
    for name in [given] if given else ["egl", "osmesa"]:
        if _succeeds(_DRAW, MUJOCO_GL=name):
            os.environ["MUJOCO_GL"] = name
            return True
    if given:
        raise UserError(f"MUJOCO_GL is {given!r}, with which MuJoCo cannot draw here; unset it")
    return False


def _succeeds(code: str, **variables: str) -> bool:
    """Whether another process runs this code: drivers that fail may take a process with them."""
    env = {**os.environ, **variables}
    return not subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode


if __name__ == "__main__":
    flags.define(PlayConfig)
    flags.run(main, takes_words=True)
