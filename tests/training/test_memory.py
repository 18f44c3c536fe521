"""Whether a run fits into memory: the bound, computed from the sizes of all that a run holds."""

from types import SimpleNamespace

import numpy as np
import pytest

from preqn_jax import agents
from preqn_jax.options import UserError
from preqn_jax.training import directory, loop, memory
from preqn_jax.training.config import LoopConfig
from preqn_jax.types import Spec

SPEC = Spec(3, 2, -np.ones(2), np.ones(2))
ROW = 4 * (3 + 2 + 1 + 1 + 3)  # float32 of (s, a, r, discount, s')
TD3 = agents.td3(SPEC)
SMALL = agents.preqn(SPEC, hidden_sizes=(7, 9))
SMALL_CRITIC = 4 * ((3 + 2) * 7 + 7 + 7 * 9 + 9 + 9 + 1)  # bytes of its parameters
PRECONDITIONED = {"critic_step": "preconditioned"}
STARTS = {"start_steps": 50, "update_after": 50, "update_every": 50}


@pytest.mark.parametrize(
    ("seeds", "capacity", "steps", "batch", "step", "needs"),
    [
        ((0,), 500, 800, 8, "gradient", memory.COPIES * 500 * ROW + 50 * 8 * ROW),
        ((0, 1, 2), 500, 800, 8, "gradient", memory.COPIES * 3 * 500 * ROW + 3 * 50 * 8 * ROW),
        ((0, 1), 800, 500, 8, "gradient", memory.COPIES * 2 * 500 * ROW + 2 * 50 * 8 * ROW),
        *(  # K and three more of its size
            ((0,), 500, 500, 90, step, memory.COPIES * 500 * ROW + 50 * 90 * ROW + 4 * 4 * 90**2)
            for step in ("preconditioned", "natural_gradient")
        ),
        (  # members take turns on the CPU: one kernel at a time
            *((0, 1), 500, 500, 90, "preconditioned"),
            memory.COPIES * 2 * 500 * ROW + 2 * 50 * 90 * ROW + 4 * 4 * 90**2,
        ),
    ],
)
def test_a_run_is_refused_where_it_needs_a_byte_more_than_there_is(
    seeds, capacity, steps, batch, step, needs, monkeypatch
):
    config = LoopConfig(
        seeds=seeds, replay_capacity=capacity, num_steps=steps, batch_size=batch, **STARTS
    )
    monkeypatch.setattr(memory, "_machine", lambda: needs)
    memory.check(SPEC, config, {"critic_step": step}, TD3, {})
    monkeypatch.setattr(memory, "_machine", lambda: needs - 1)
    most = "replay_capacity" if batch == 8 else "batch_size"
    with pytest.raises(UserError, match=f"this run would need some .* lower `{most}`"):
        memory.check(SPEC, config, {"critic_step": step}, TD3, {})


@pytest.mark.parametrize("kernel", ["structured", "jacobian"])
@pytest.mark.parametrize(
    ("seeds", "devices", "share"), [(8, 8, 1), (9, 8, 2), (6, 2, 3), (1, 8, 1)]
)
def test_a_device_needs_room_for_its_share_of_the_members(
    seeds, devices, share, kernel, monkeypatch
):
    """Their kernels, and their per-example gradients, exist at the same time."""
    described = {**PRECONDITIONED, "kernel": kernel}
    gradients = 90 * SMALL_CRITIC if kernel == "jacobian" else 0
    config = LoopConfig(
        seeds=tuple(range(seeds)), replay_capacity=500, num_steps=500, batch_size=90, **STARTS
    )
    needs = share * int(memory.COPIES * 500 * ROW + 50 * 90 * ROW + 4 * 4 * 90**2 + gradients)
    there = [SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": limit})] * devices
    monkeypatch.setattr(memory.jax, "local_devices", lambda: there)
    limit = needs
    assert len(loop.devices_for(seeds)) <= devices
    memory.check(SPEC, config, described, SMALL, {})
    limit = needs - 1
    with pytest.raises(UserError, match="of memory on each device at its peak"):
        memory.check(SPEC, config, described, SMALL, {})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kernel": "jacobian"}, "lower `batch_size`, or use `kernel=structured`"),
        ({"kernel": "jacobian", "algorithm": "preqn_twin"}, "or use `kernel=structured`"),
        ({"algorithm": "preqn_twin"}, "lower `batch_size`$"),
        ({"kernel": "jacobian", "algorithm": "ngql"}, "lower `batch_size`$"),  # it has one way only
    ],
)
def test_each_critic_holds_its_kernel_and_where_asked_its_gradients(fields, words, monkeypatch):
    made = agents.resolve(agents.AgentConfig(hidden_sizes=(7, 9), **fields))
    agent, config = agents.make(made, SPEC), LoopConfig(num_steps=50, batch_size=90, **STARTS)
    described = directory.describe(made.config)
    critics = 2 if fields.get("algorithm") == "preqn_twin" else 1
    solved = critics * 4 * 4 * 90**2
    if "structured" in words:
        solved += critics * 90 * SMALL_CRITIC
    needs = int(memory.COPIES * 50 * ROW) + 50 * 90 * ROW + solved
    monkeypatch.setattr(memory, "_machine", lambda: needs)
    memory.check(SPEC, config, described, agent, {})
    monkeypatch.setattr(memory, "_machine", lambda: needs - 1)
    with pytest.raises(UserError, match=words):
        memory.check(SPEC, config, described, agent, {})


def test_another_kernel_is_named_only_where_it_would_do(monkeypatch):
    config = LoopConfig(num_steps=50, batch_size=90, **STARTS)
    monkeypatch.setattr(memory, "_machine", lambda: 4 * 4 * 90**2)  # K fits, and nothing else
    with pytest.raises(UserError, match="lower `batch_size`$"):
        memory.check(SPEC, config, {**PRECONDITIONED, "kernel": "jacobian"}, SMALL, {})


def test_the_settings_of_a_sweep_are_known_where_gradients_are_counted(monkeypatch):
    """An agent of `agents.swept` is made of a key and settings."""
    etas = {"eta": np.array([0.9, 0.97], np.float32)}
    swept = agents.swept(
        lambda given: agents.preqn(SPEC, hidden_sizes=(7, 9), **given), {"eta": 0.9}
    )
    config = LoopConfig(num_steps=50, batch_size=90, **STARTS)
    limits = []
    for agent, settings in ((SMALL, {}), (swept, etas)):
        monkeypatch.setattr(memory, "_machine", lambda: 1)
        with pytest.raises(UserError) as raised:
            memory.check(SPEC, config, {**PRECONDITIONED, "kernel": "jacobian"}, agent, settings)
        limits.append(str(raised.value))
    assert limits[0] == limits[1]


def test_the_memory_of_a_batch_job_or_a_container_is_that_of_its_groups(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "slurm" / "job_1" / "step").mkdir(parents=True)
    proc.write_text("1:net:/x\n0::/slurm/job_1/step\n")
    whole = memory._machine(proc, root)
    assert whole == memory._machine(tmp_path / "none", root) > 2**28
    (root / "slurm" / "job_1" / "step" / "memory.max").write_text("max\n")
    (root / "slurm" / "job_1" / "memory.max").write_text("12345678\n")
    assert memory._machine(proc, root) == 12345678
    (root / "slurm" / "memory.max").write_text("what\n")
    assert memory._machine(proc, root) == 12345678


def test_so_it_is_with_groups_of_version_1_and_with_what_slurm_says(tmp_path, monkeypatch):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "memory" / "job_1" / "step").mkdir(parents=True)
    proc.write_text("9:cpu,cpuacct:/job_2\n4:hugetlb,memory:/job_1/step\n0::/\n")
    unlimited = root / "memory" / "job_1" / "step" / "memory.limit_in_bytes"
    unlimited.write_text("9223372036854771712\n")
    whole = memory._machine(proc, root)
    (root / "memory" / "job_1" / "memory.limit_in_bytes").write_text("12345678\n")
    assert memory._machine(proc, root) == 12345678 < whole
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert memory._machine(proc, root) == 6 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "5")
    assert memory._machine(proc, root) == 5 * 2**20
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.setenv(name, "0")  # all of it
    assert memory._machine(proc, root) == 12345678


def test_members_may_have_more_files_open_than_a_shell_allows_at_first(monkeypatch):
    limits: list[tuple[int, int]] = []
    now: list[tuple[int, int]] = [(256, 4096)]
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(memory.resource, "setrlimit", lambda _, pair: limits.append(pair))
    memory.make_room_for_files(300)
    assert limits == [(4 * 300 + 128, 4096)]
    now[0] = (256, 1024)
    with pytest.raises(UserError, match="1328 open files, but the system allows 1024 per process"):
        memory.make_room_for_files(300)
    now[0] = memory.resource.RLIM_INFINITY, memory.resource.RLIM_INFINITY
    memory.make_room_for_files(300)
    assert len(limits) == 1
