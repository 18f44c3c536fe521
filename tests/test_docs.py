"""The pages of docs/: their commands exist, their examples run, their links and names lead
somewhere, and their tables and numbers agree with the code and the results.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from commands import ROOT

import after_cases
import preqn_jax
from experiments.kit import flags, launch, plan
from preqn_jax import agents, envs
from preqn_jax.agents import AgentConfig
from preqn_jax.diagnostics import GLOSSARY
from preqn_jax.training import memory
from preqn_jax.training import run as training
from preqn_jax.training import sweep as sweeps
from preqn_jax.training.config import LoopConfig
from preqn_jax.types import Spec, Transition

reacher = after_cases.reacher
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES.remove(ROOT / "CHANGELOG.md")  # which also speaks of the past
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
REFERENCE = [text for name, text in TEXTS.items() if name.startswith("docs/reference/")]


def pieces(text):
    """The code of a page: the lines of its code blocks, and the texts between backticks."""
    for i, part in enumerate(re.split(r"^```.*$", text, flags=re.M)):
        if i % 2:
            yield from re.sub(r"\\\n\s*", "", part).splitlines()
        else:
            yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", part))


def commands(text):
    """The module and the arguments of each of our commands on a page."""
    for piece in pieces(text):
        if found := re.search(r"-m (experiments\.[\w.]+)(.*)", piece):
            yield found[1], shlex.split(found[2].strip(), comments=True)


NOTES = {
    path.name: "\n\n".join(
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "markdown"
    )
    for path in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
}
SHOWN = {**TEXTS, **NOTES}
COMMANDS = [(name, *command) for name, text in SHOWN.items() for command in commands(text)]


def of_command(name):
    """The configs that a command's flags are made of, if any, and whether it also takes plain
    arguments.
    """
    module = importlib.import_module(name)
    calls = [
        node.value
        for block in ast.parse(inspect.getsource(module)).body
        if isinstance(block, ast.If) and "__main__" in ast.unparse(block.test)
        for node in block.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    calls = {ast.unparse(call.func): call for call in calls}
    configs = (plan.PlanConfig, launch.LaunchConfig) if "plan.define" in calls else ()
    if "flags.define" in calls:
        own = ", ".join(map(ast.unparse, calls["flags.define"].args))
        configs += eval(f"({own},)", vars(module))
    return configs, bool(configs) and bool(calls["flags.run"].keywords)


@pytest.mark.parametrize(("page", "module", "words"), COMMANDS)
def test_every_command_parses(page, module, words):
    configs, takes_words = of_command(module)
    words = words[: words.index("--")] if "--" in words else words
    given = [word for word in words if word.startswith("-") and "--help" not in word]
    if module == "experiments.sweep":
        swept = [word for word in given if word.startswith(("--sweep=", "--report"))]
        sweeps.axes([word.removeprefix("--sweep=") for word in swept if word != "--report"])
        given = [word for word in given if word not in swept]
    made = flags.read(given, *configs)  # raises for unknown flags and wrong values
    assert takes_words or all(word.startswith("-") for word in words)
    if module in ("experiments.train", "experiments.sweep"):
        run = dataclasses.replace(made[0], track="")  # trackers are not installed everywhere
        training.plan(run, *made[1:3])  # raises for settings that make no sense
        if run.env.startswith(("probe/", "tabular/", "native/")):
            algorithm = next(one for one in made if isinstance(one, AgentConfig)).algorithm
            agents.check_kind(algorithm, envs.spec(run.env))


def test_every_command_is_seen():
    mentioned = sum(len(re.findall(r"-m\s+experiments\.\w", text)) for text in SHOWN.values())
    assert len(COMMANDS) == mentioned > 60


def test_every_flag_that_a_page_speaks_of_is_one():
    known = {"help", "helpfull", "debug", "sweep", "report"}
    for path in (ROOT / "experiments").glob("[a-z]*.py"):
        configs, _ = of_command(f"experiments.{path.stem}")
        known |= {name for config in configs for name in config.__dataclass_fields__}
    for page, text in TEXTS.items():
        for piece in pieces(text):
            if re.match(r"--[a-z]", piece):  # of what, a command line of others says itself
                name = re.match(r"--(\w+)", piece)[1]
                assert {name, name.removeprefix("no")} & known or name[:4] == "xla_", (page, piece)


# --- examples -------------------------------------------------------------------------------------


def example(page, index, capsys, count):
    """The output of a code block of a page, which must have `count` such blocks."""
    blocks = re.findall(r"```python\n(.*?)```", TEXTS[f"docs/{page}.md"], re.S)
    assert len(blocks) == count
    exec(blocks[index], {})
    return capsys.readouterr().out.splitlines()


def test_get_started_takes_a_run_into_python(reacher, capsys):
    Path("runs").mkdir()
    Path("runs/first").symlink_to(reacher[0])
    (line,) = example("get-started", 0, capsys, count=1)
    assert line.startswith("100 [")


def test_the_example_of_the_theory_diverges_and_its_remedy_does_not(capsys):
    plain, preconditioned = example("theory", 0, capsys, count=1)
    assert plain.startswith("U3") and float(plain.split()[-1]) > 100
    assert float(preconditioned.split()[-1]) < 0.01


@pytest.mark.slow
def test_lines_10_to_13_by_hand_are_the_step(capsys):
    aligned, same = example("preqn-step-by-step", 0, capsys, count=1)
    assert float(re.search(r"0\.\d+", aligned)[0]) >= 0.97 and same == "the same: True"


@pytest.mark.slow
def test_the_critic_of_the_guide_overshoots_when_the_page_says(capsys):
    first, *_ = example("why-did-my-q-explode", 0, capsys, count=3)
    count, mode = re.match(r"after (\d+) updates: (.*)", first).groups()
    assert mode == "overshooting" and abs(int(count) - 67) <= 2
    text = TEXTS["docs/why-did-my-q-explode.md"]
    assert "after some 67 updates and says: overshooting" in " ".join(text.split())


class Drawn(np.ndarray):
    """A stand-in for a PyTorch tensor, with the methods that the page uses."""

    detach = cpu = lambda self: self
    numpy = lambda self: np.asarray(self, np.float32)


def torch_by_hand():
    """A stand-in for those parts of PyTorch that the page uses, as it need not be installed."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).view(Drawn)
    linear = lambda into, out: {"weight": draw(out, into) / np.sqrt(into), "bias": 0 * draw(out)}

    def sequential(*layers):
        named = {f"{i}.{name}": w for i, layer in enumerate(layers) for name, w in layer.items()}
        return SimpleNamespace(state_dict=lambda: named)

    nn = SimpleNamespace(Linear=linear, ReLU=dict, Sequential=sequential)
    return SimpleNamespace(nn=nn, randn=lambda shape: draw(*shape))


def test_a_critic_of_pytorchs_is_diagnosed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch_by_hand())
    (line,) = example("why-did-my-q-explode", 2, capsys, count=3)
    number, finding = line.split()
    assert -2 < float(number) < 100 and finding == "None"


@pytest.mark.slow
def test_what_mends_the_critic_of_the_guide_does_and_what_does_not_does_not():
    block = re.findall(r"```python\n(.*?)```", TEXTS["docs/why-did-my-q-explode.md"], re.S)[0]
    code = block[: block.index("for count in")]

    def beyond(bound, updates, *changes):
        """The number of updates after which |Q| is beyond the bound; all `updates` if it stays
        within.
        """
        changed = code
        for old, new in changes:
            assert old in changed
            changed = changed.replace(old, new)
        exec(changed, names := {})
        params = names["params"]
        for count in range(updates):
            values = names["critic"].apply(params, names["obs"], names["action"])
            if not abs(values).max() <= bound:
                return count
            params, _ = names["update"](params)
        return updates

    shorter, sine = ("0.003", "0.0003"), ("nn.relu", "jnp.sin")
    assert beyond(1000, 100) < 100 and 500 < beyond(1000, 1000, shorter) < 800
    assert beyond(100, 3000, sine) == 3000


@pytest.mark.slow
def test_an_algorithm_of_ones_own_trains(capsys):
    lines = example("extend", 0, capsys, count=7)
    assert [line.split()[0] for line in lines] == ["50", "100", "150"]
    assert all(-1 <= float(line.split()[1]) <= 1 for line in lines)


@pytest.mark.slow
def test_targets_of_ones_own_train(capsys):
    lines = example("extend", 1, capsys, count=7)
    assert lines and all(np.isfinite(float(line.split()[-1])) for line in lines)


@pytest.mark.slow
def test_a_network_of_ones_own_trains(capsys):
    lines = example("extend", 2, capsys, count=7)
    assert [line.split()[0] for line in lines] == ["50", "100", "150"]
    assert all(float(line.split()[1]) >= 0.97 for line in lines)


@pytest.mark.slow
def test_a_solver_of_ones_own_is_refused_where_it_cuts_too_much(capsys):
    few, _, all_ = example("extend", 3, capsys, count=7)
    assert few.endswith("accepted False") and all_.endswith("residual 0.00, accepted True")


@pytest.mark.slow
def test_an_environment_of_ones_own_trains(capsys):
    lines = example("extend", 4, capsys, count=7)
    assert [line.split()[0] for line in lines] == ["100", "200", "300"]


# --- tables and numbers ---------------------------------------------------------------------------


def test_the_guide_has_every_number_of_a_diagnosis_as_the_glossary_has_it():
    found = {}
    for section in re.split(r"^### ", _numbers(), flags=re.M)[1:]:
        said = re.search(r"\*\*What to do\*\*: (.*?)\.\n\n", section, re.S)
        for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.M):
            high, *rather, source = map(str.strip, cells.split("|"))
            remedy = "".join(rather) or " ".join(said[1].split() if said else "")
            found[name] = (high, remedy, source)
    assert found == {
        name: (entry.high, entry.remedy, entry.source) for name, entry in GLOSSARY.items()
    }


def _numbers():
    text = TEXTS["docs/why-did-my-q-explode.md"]
    return text[text.index("## Every number") :]


METRIC = r"(?:actor|critic|linesearch|solve|ntk|train|eval|time|diagnose|exact|run)/\w+"


def recorded(algorithm, **options):
    """The names of the metrics of an update and of its agent's summary."""
    spec = Spec(3, 1, -np.ones(1), np.ones(1))
    if algorithm in agents.DISCRETE:
        spec = Spec(3, 1, np.zeros(1), np.full(1, 1.0), num_actions=2)
    config = AgentConfig(algorithm, None, (8, 8), (8, 8), **options)
    agent = agents.make(config, spec)
    state = jax.eval_shape(agent.init, jax.eval_shape(lambda: jax.random.key(0)))
    shape = lambda *s: jax.ShapeDtypeStruct((4, *s), "float32")
    batch = Transition(shape(3), shape(1), shape(), shape(), shape(3))
    key, count = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), "int32")
    _, metrics = jax.eval_shape(agent.update, state, batch, key, count)
    return {*metrics, *jax.eval_shape(agent.summary, state)}


def test_the_table_of_records_has_every_name_that_training_writes_and_no_other():
    text = TEXTS["docs/after-training.md"]
    table = text[text.index("## Records") : text.index("## Track")]
    told = set(re.findall(f"`({METRIC})`", table))
    written = set()
    for path in (ROOT / "preqn_jax").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        strings = [n.value for n in nodes if isinstance(n, ast.Constant)]
        written |= {s for s in strings if isinstance(s, str) and re.fullmatch(METRIC, s)}
    written |= {f"exact/{name}" for name in ("q_error", "modulus", "radius")}
    for algorithm in agents.ALGORITHMS:
        written |= recorded(algorithm)
    assert told == written
    kept = set()
    for path in (ROOT / "experiments" / "results").glob("[ad]*/**/metrics.jsonl"):
        for line in path.read_text().splitlines():
            kept |= json.loads(line).keys()
    assert kept - told - {f"diagnose/{name}" for name in GLOSSARY} == {"step", "seed"}


def numbers(text):
    return set(re.findall(r"\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\d{2,}", text))


@pytest.mark.parametrize("page", ["which-algorithm", "faq"])
def test_numbers_of_a_page_are_those_of_the_results(page):
    """When a result is measured anew, this names the page that quotes it."""
    known = [text for name, text in TEXTS.items() if name.startswith("docs/results/")]
    known += [TEXTS[name] for name in ("README.md", "docs/design.md", "docs/rivals.md")]
    known.append(f"{4 * (2 * 17 + 6 + 2)} MB, 17 observations, {memory.COPIES} copies")
    quoted = "\n".join(re.split(r"^```.*$", TEXTS[f"docs/{page}.md"], flags=re.M)[::2])
    quoted = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", quoted)
    assert numbers(quoted) <= numbers("\n".join(known))


# --- links, reference, navigation -----------------------------------------------------------------


def slugs(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_what_is_there(page):
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)
    for to, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]+))?\)", prose):
        path = (ROOT / page).parent / to if to else ROOT / page
        assert path.exists(), f"{page} links to {to}"
        assert not anchor or anchor in slugs(path.read_text()), f"{page} links to {to}#{anchor}"


def found(path):
    """The object that a dotted path names. Raises if there is none."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(path)


def documented():
    """All that the reference's directives show: objects, and the public names of modules."""
    for path in re.findall(r"^::: (\S+)$", "\n".join(REFERENCE), re.M):
        thing = importlib.import_module(path) if path.count(".") == 1 else found(path)
        yield thing
        if inspect.ismodule(thing):
            yield from _public(thing)


def _public(module):
    """The names in `__all__`, or without it those that the module itself defines."""
    if names := getattr(module, "__all__", None):
        return [getattr(module, name) for name in names]
    return [value for value in vars(module).values() if _home(value) == module.__name__]


def _home(value):
    return getattr(value, "__module__", None)


def test_every_public_name_is_in_the_reference():
    seen = list(map(id, documented()))
    (overview,) = (text for text in REFERENCE if text.startswith("# Reference"))
    for name in preqn_jax.__all__:
        assert f"`{name}`" in overview
        assert name == "__version__" or id(getattr(preqn_jax, name)) in seen, name


def test_every_reference_names_what_there_is():
    for path in re.findall(r"\]\[(preqn_jax[\w.]*)\]", "\n".join(TEXTS.values())):
        assert found(path) is not None


def _leaves(nav):
    for entry in nav if isinstance(nav, list) else nav.values():
        yield from [entry] if isinstance(entry, str) else _leaves(entry)


def test_the_navigation_names_every_page_and_no_other():
    named = list(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    outside = [name for name in named if not (ROOT / "docs" / name).exists()]
    assert all((ROOT / name).exists() for name in outside), outside
    assert sorted(set(named) - set(outside)) == sorted(pages) and len(set(named)) == len(named)


def test_what_the_site_needs_lies_in_the_repository():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["strict"] and config["theme"]["font"] is False
    assert all((ROOT / hook).exists() for hook in config["hooks"])
    assert all((ROOT / "docs" / sheet).exists() for sheet in config["extra_css"])
    assert "extra_javascript" not in config


def test_the_memory_of_a_member_is_what_the_page_says():
    page = (ROOT / "docs" / "sweeps.md").read_text()
    rows = re.findall(r"^\| (\S+-v\d.*) \| (\d+) MB \| (\d+) MB \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for names, *told in rows:
        for name in names.split(", "):
            spec = envs.spec(name)
            for steps, megabytes in zip((100_000, 1_000_000), told, strict=True):
                needed = memory.needs(spec, LoopConfig(num_steps=steps))["replay_capacity"]
                assert round(needed / 1e6) == int(megabytes), (name, steps)
