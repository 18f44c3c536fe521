"""The house rules that a machine can hold: imports point down, precision is pinned, every update
lowers for every device.
"""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import numpy as np
import pytest

from preqn_jax import agents
from preqn_jax.types import Spec, Transition

ROOT = Path(__file__).parent.parent
# Each room, and the rooms it may import.
BOTTOM = {"types", "options"}
ROOMS = {
    "types": set(),
    "options": set(),
    "sine": BOTTOM,
    "ntk": BOTTOM,
    "solve": BOTTOM,
    "linesearch": BOTTOM,
    "replay": BOTTOM,
    "networks": BOTTOM | {"sine"},
    "diagnostics": BOTTOM | {"ntk", "linesearch"},
    "tabular": BOTTOM | {"solve", "diagnostics"},
    "examples": BOTTOM | {"tabular"},
    "envs": BOTTOM | {"tabular", "examples"},
    "steps": BOTTOM | {"ntk", "solve", "linesearch", "diagnostics"},
    "agents": BOTTOM | {"ntk", "solve", "networks", "steps", "diagnostics"},
    "training": BOTTOM | {"replay", "envs", "agents", "diagnostics"},
}


def imported(path):
    """Full names of the modules a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [
        p
        for p in (ROOT / "preqn_jax").rglob("*.py")
        if p.parent != ROOT / "preqn_jax" or p.name != "__init__.py"
    ]


def room(path):
    first = path.relative_to(ROOT / "preqn_jax").parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    allowed = ROOMS[room(path)] | {room(path)}
    for name in imported(path):
        if name.split(".")[0] == "preqn_jax":
            assert name.split(".")[1] in allowed, f"{room(path)} must not import {name}"
        assert name.split(".")[0] not in ("absl", "matplotlib", "tqdm", "experiments")
        if name.split(".")[0] in ("gymnasium", "mujoco"):
            assert path.name == "gym.py"
        assert not name.startswith("jax._src")


def test_every_room_is_in_the_table():
    assert {room(path) for path in files()} == set(ROOMS)


@pytest.mark.parametrize("algorithm", agents.ALGORITHMS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_every_update_lowers_for_accelerators(algorithm, platform):
    spec = Spec(3, 2, -np.ones(2), np.ones(2))
    agent = agents.make(agents.AgentConfig(algorithm=algorithm, hidden_sizes=(8, 8)), spec)
    shape = lambda *s: jax.ShapeDtypeStruct((16, *s), jnp.float32)
    batch = Transition(shape(3), shape(2), shape(), shape(), shape(3))
    key, count = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    state = jax.eval_shape(agent.init, key)
    exported = jax.export.export(jax.jit(agent.update), platforms=[platform])(
        state, batch, key, count
    )
    text = exported.mlir_module()
    assert "f64" not in text and "callback" not in text


def test_kernel_and_solve_products_are_pinned_to_full_precision():
    from preqn_jax import networks, steps

    critic = networks.Critic((8, 8))
    params = jax.eval_shape(critic.init, jax.random.key(0), jnp.zeros(3), jnp.zeros(2))
    step = steps.preconditioned(critic.apply)
    inputs = (
        jax.ShapeDtypeStruct((16, 3), jnp.float32),
        jax.ShapeDtypeStruct((16, 2), jnp.float32),
    )
    text = (
        jax.jit(step.update)
        .lower(params, (), inputs, jax.ShapeDtypeStruct((16,), jnp.float32))
        .as_text()
    )
    square = [
        line
        for line in text.splitlines()
        if "dot_general" in line and line.rstrip().endswith("tensor<16x16xf32>")
    ]
    assert len(square) >= 5 and all("HIGHEST" in line for line in square)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb")), ids=lambda p: p.name
)
def test_notebooks_run(path):
    if path.stem.endswith("_sbx"):
        pytest.importorskip("sbx", reason="the extra `peers` is not installed")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    ).execute()
