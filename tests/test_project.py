"""Rules of the project that can be checked by machine: imports point down, precision is fixed,
every update lowers for every device.
"""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import numpy as np
import optax
import pytest

from preqn_jax import agents, networks, steps
from preqn_jax.types import Spec, Transition

ROOT = Path(__file__).parent.parent
# Each part of a package (a room), and the parts it imports: no others, and all of these.
LIBRARY = {
    "types": set(),
    "options": set(),
    "actions": {"types", "options"},
    "batching": {"types"},
    "sine": {"types"},
    "ntk": {"types", "options", "batching"},
    "solve": {"types", "options"},
    "linesearch": {"types", "options"},
    "measures": {"types", "batching", "ntk", "linesearch"},
    "replay": {"types", "actions"},
    "networks": {"types", "options", "actions", "sine"},
    "tabular": {"types", "solve"},
    "problems": {"types", "options", "tabular"},
    "diagnostics": {
        "types",
        "options",
        "actions",
        "batching",
        "ntk",
        "measures",
        "tabular",
        "problems",
    },
    "steps": {"types", "options", "batching", "ntk", "solve", "linesearch", "measures"},
    "envs": {"types", "options", "actions", "problems"},
    "agents": {
        "types",
        "options",
        "actions",
        "batching",
        "ntk",
        "solve",
        "measures",
        "networks",
        "steps",
    },
    "training": {
        "types",
        "options",
        "actions",
        "replay",
        "problems",
        "batching",
        "envs",
        "networks",
        "agents",
        "diagnostics",
    },
}
COMMANDS = {
    "kit": set(),
    "judge": {"kit"},
    "bench": {"kit"},
    "train": {"kit"},
    "sweep": {"kit", "judge"},
    "plot": {"kit"},
    "table": {"kit"},
    "play": {"kit"},
    "export": {"kit"},
    "diagnose": {"kit"},
    "benchmark": {"kit", "judge"},
    "alignment": {"kit", "judge"},
    "rivals": {"kit", "judge"},
    "ntk_init": {"kit", "judge"},
    "failure_modes": {"kit", "judge"},
    "verdicts": {"kit"},
    "cost": {"kit", "bench"},
    "throughput": {"kit", "bench"},
    "precision": {"kit", "bench"},
    # It redraws their figures.
    "figures": {"kit", "judge", "bench", "benchmark", "alignment", "diagnose", "failure_modes"},
}
ROOMS = {"preqn_jax": LIBRARY, "experiments": COMMANDS}
EACH = [(package, name) for package, rooms in ROOMS.items() for name in rooms]


def imported(path):
    """The full names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(*packages):
    """The files of a package without its `__init__.py`, which belongs to no room."""
    return [
        path
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / package / "__init__.py"
    ]


def room(path):
    """The room of a file: its package and its name."""
    package, first, *_ = path.relative_to(ROOT).parts
    return package, first.removesuffix(".py")


def rooms_imported(path):
    """The rooms of its own package that a file imports, except its own room."""
    package, own = room(path)
    names = [name.split(".") for name in imported(path) if name.startswith(f"{package}.")]
    return {name[1] for name in names} - {own}


@pytest.mark.parametrize("path", files(*ROOMS), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    package, name = room(path)
    upwards = rooms_imported(path) - ROOMS[package][name]
    assert not upwards, f"{name} must not import {', '.join(upwards)}"


@pytest.mark.parametrize("path", files("preqn_jax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_imports_no_command_and_each_simulator_in_its_file(path):
    for name in imported(path):
        assert name.split(".")[0] not in ("absl", "matplotlib", "tqdm", "experiments")
        if name.split(".")[0] in ("gymnasium", "mujoco"):
            assert path.name in ("gym.py", "gym_state.py", "spaces.py")
        assert not name.startswith("jax._src")
        if name.startswith("jax.extend"):
            assert path.relative_to(ROOT / "preqn_jax").as_posix() == "ntk/usage.py"


@pytest.mark.parametrize(("package", "name"), EACH)
def test_every_arrow_of_the_table_is_used(package, name):
    paths = [path for path in files(package) if room(path) == (package, name)]
    vain = ROOMS[package][name] - set().union(*map(rooms_imported, paths))
    assert not vain, f"no file of {name} imports {', '.join(vain)}"


@pytest.mark.parametrize("package", ROOMS)
def test_the_table_goes_from_the_bottom_up(package):
    seen = set()
    for name, below in ROOMS[package].items():
        assert below <= seen, f"{name} imports a room that comes later"
        seen.add(name)


def test_every_room_is_in_the_table():
    assert {room(path) for path in files(*ROOMS)} == set(EACH)


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("preqn", "sac", "crossq")))
        for name in agents.ALGORITHMS
    ],
)
def test_every_update_lowers_for_accelerators(algorithm):
    spec = Spec(3, 2, -np.ones(2), np.ones(2))
    if algorithm in agents.DISCRETE:
        spec = Spec(3, 1, np.zeros(1), np.full(1, 3.0), num_actions=4)
    agent = agents.make(agents.AgentConfig(algorithm, None, (8, 8), (8, 8)), spec)
    shape = lambda *s: jax.ShapeDtypeStruct((16, *s), jnp.float32)
    batch = Transition(shape(3), shape(spec.action_size), shape(), shape(), shape(3))
    key, count = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    state = jax.eval_shape(agent.init, key)
    exported = jax.export.export(jax.jit(agent.update), platforms=["cuda", "tpu"])(
        state, batch, key, count
    )
    text = exported.mlir_module()
    assert "f64" not in text and "callback" not in text


def _adam(q):
    return steps.gradient(q, optax.adam(1e-3))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("make", [steps.preconditioned, steps.natural_gradient, _adam])
def test_products_of_a_step_are_pinned_to_full_precision(make, precision):
    """Those of Q's own layers too: a step is judged by differences of Q, and for a Q of 300 the
    rounding of TF32 or bfloat16 is as large as these.
    """
    critic = networks.Critic((8, 8))
    params = jax.eval_shape(critic.init, jax.random.key(0), jnp.zeros(3), jnp.zeros(2))
    step, shape = make(critic.apply), lambda *s: jax.ShapeDtypeStruct((16, *s), jnp.float32)
    with jax.default_matmul_precision(precision):
        memory = jax.eval_shape(step.init, params)
        text = jax.jit(step.update).lower(params, memory, (shape(3), shape(2)), shape()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 6 and all("HIGHEST" in line for line in products)


CHOICES = Spec(3, 1, np.zeros(1), np.full(1, 3.0), num_actions=4)


@pytest.mark.parametrize("name", ["crossq", "dqn", "preqn_discrete"])
def test_products_of_other_critics_are_too(name):
    """Critics with their own passes: CrossQ's over both batches at once, and choosing an action. A
    policy's products have the device's precision: they lead to a mean and its spread.
    """
    spec = Spec(3, 2, -np.ones(2), np.ones(2)) if name == "crossq" else CHOICES
    config = agents.AgentConfig(name, None, (8, 8), (12, 12))
    agent = agents.make(config, spec)
    shape = lambda *s: jax.ShapeDtypeStruct((16, *s), jnp.float32)
    batch = Transition(shape(3), shape(spec.action_size), shape(), shape(), shape(3))
    key, count = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    state = jax.eval_shape(agent.init, key)
    texts = [jax.jit(agent.update).lower(state, batch, key, count).as_text()]
    if name != "crossq":
        acting = jax.eval_shape(agent.policy, state)
        texts.append(jax.jit(agent.act).lower(acting, jax.ShapeDtypeStruct((3,), "f4")).as_text())
    lines = [line for text in texts for line in text.splitlines() if "dot_general" in line]
    critics = [line for line in lines if "x12xf32>" in line] if name == "crossq" else lines
    assert len(critics) >= 6 and all("HIGHEST" in line for line in critics)


NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path):
    if path.stem.endswith("_sbx"):
        pytest.importorskip("sbx", reason="the extra `peers` is not installed")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    ).execute()


def sources():
    return [path for part in ("preqn_jax", "experiments") for path in (ROOT / part).rglob("*.py")]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    """A file has at most 400 lines, and a function 60, without its docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            words = node.body[:1] if ast.get_docstring(node) is not None else []
            lines = [(part.end_lineno or 0) - part.lineno + 1 for part in (node, *words)]
            assert lines[0] - sum(lines[1:]) <= 60, node.name


def test_no_files_import_one_another_in_a_circle():
    """Not even within a room."""
    names = {}
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    arrows = {
        name: {other for other in imported(path) if other in names} for name, path in names.items()
    }
    for name, path in names.items():  # `from package.module import thing`
        arrows[name] |= {other.rpartition(".")[0] for other in imported(path)} & set(names)
    free = {name for name, path in names.items() if path.name == "__init__.py"}  # passes names on
    left = {name: others - free - {name} for name, others in arrows.items() if name not in free}
    while ready := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in ready}
    assert not left, f"a circle among {sorted(left)}"
