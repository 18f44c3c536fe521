"""What is released, and what it runs on: versions agree, and images, workflows and hooks call what
exists.
"""

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from commands import ROOT

import preqn_jax

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def text(name):
    return (ROOT / name).read_text()


def pythons():
    """The minor versions of Python in the classifiers."""
    names = [name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if "Python ::" in name]
    return [name for name in names if "." in name]


def recipes():
    """The commands of each target of the Makefile."""
    found, current = {}, []
    for line in text("Makefile").splitlines():
        if rule := re.match(r"([\w. /%-]+):(?!=)(?! \w+ =)", line):
            current = []
            found |= dict.fromkeys(rule[1].split(), current)
        elif line.startswith("\t"):
            current.append(line.strip())
    return found


def test_the_version_is_said_in_one_place():
    assert PROJECT["version"] == preqn_jax.__version__
    assert yaml.safe_load(text("CITATION.cff"))["version"] == PROJECT["version"]


def test_the_oldest_python_is_the_same_everywhere():
    oldest, *_ = pythons()
    assert PROJECT["requires-python"] == f">={oldest}"
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"OLDEST ?= python{oldest}\n" in text("Makefile")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in text("Makefile")


def test_this_python_is_one_of_those_declared():
    if sys.version_info[:2] > tuple(map(int, pythons()[-1].split("."))):
        pytest.skip("newer than those declared: add it to the classifiers where all passes")
    assert "{}.{}".format(*sys.version_info) in pythons()


def jobs():
    """Every call of make in a workflow: its job, the values of its matrix, and its arguments."""
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            matrix = job["strategy"]["matrix"]
            rows = matrix.get("include") or [
                dict(zip(matrix, values, strict=True))
                for values in itertools.product(*matrix.values())
            ]
            for row, step in itertools.product(rows, job["steps"]):
                if "run" in step:
                    words = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda m: row[m[1]], step["run"])  # noqa: B023
                    yield job, row, words.split()


def test_workflows_only_call_targets_that_there_are():
    made, targets = [list(words) for *_, words in jobs()], set(recipes())
    assert len(made) > 6 and {words[0] for words in made} == {"make"}
    asked = {word for words in made for word in words[1:] if "=" not in word}
    assert asked >= {"check", "fast-test", "docs", "dist", "test-lowest", "test-newest"}
    assert asked <= targets
    variables = {word.split("=")[0] for words in made for word in words if "=" in word}
    assert variables <= set(re.findall(r"^(\w+) \?=", text("Makefile"), re.M))


def test_workflows_test_the_oldest_and_the_newest_python():
    tested = {row["python"] for _, row, words in jobs() if words[1] == "fast-test"}
    assert tested == {pythons()[0], pythons()[-1]}
    for job, row, words in jobs():  # each has the Pythons that its command names
        (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
        there = setup["with"]["python-version"].replace(
            "${{ matrix.python }}", row.get("python", "")
        )
        assert {word.partition("=python")[2] for word in words if "=" in word} <= set(there.split())


def test_hooks_before_a_commit_are_what_make_check_runs():
    (repo,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert repo["repo"] == "local" and not any(hook["pass_filenames"] for hook in repo["hooks"])
    entries = [hook["entry"] for hook in repo["hooks"]]
    assert entries == [line.replace("$(BIN)", ".venv/bin") for line in recipes()["check"]]


def instructions():
    """Each instruction of the Dockerfile, with its arguments."""
    lines = re.sub(r"^#.*\n|\\\n", "", DOCKERFILE, flags=re.M).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def test_the_image_copies_what_there_is_and_what_the_builder_is_given():
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} == known
    copied = {
        source for name, words in instructions() if name == "COPY" for source in words.split()[:-1]
    }
    given = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    assert copied == given and all((ROOT / name).exists() for name in copied)
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= copied


def test_the_images_extras_and_python_are_declared():
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", DOCKERFILE, re.M))
    assert arguments["PYTHON"] in pythons()
    written = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)
    assert {"cuda", "experiments"} <= {name for names in written for name in names.split(",")}
    for names in written:
        assert set(names.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_image_starts_a_command_that_there_is():
    words = {name: yaml.safe_load(words) for name, words in instructions() if name[-1] in "TD"}
    assert words["ENTRYPOINT"] == ["python", "-m"]
    assert importlib.util.find_spec(words["CMD"][0])


# Stands in for Python, also in the venv that it makes; pip is there once a venv was made.
PYTHON = """#!/bin/sh
echo "$*" >> said
case "$*" in
  "-m pip"*) test -e .venv/pip ;;
  "-m ensurepip"*) false ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/pip ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_venv_that_failed_halfway_is_made_anew_and_a_whole_one_is_left_alone():
    """As where Debian's python3-venv was missing at first: it leaves a Python without pip, nor can
    that one install it, as the Python of an environment that uv made can.
    """
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, name)
    Path(".venv/bin").mkdir(parents=True)
    for name in ("fake", ".venv/bin/python"):
        Path(name).write_text(PYTHON)
        Path(name).chmod(0o755)
    for made in (["-m venv --clear .venv"], []):
        Path("said").write_text("")
        command = ["make", ".venv/installed", "PYTHON=./fake"]
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert [line for line in Path("said").read_text().splitlines() if "venv" in line] == made
        Path(".venv/installed").unlink()


@pytest.mark.slow
def test_what_is_released_is_the_library_alone_and_leaves_the_checkout_clean(tmp_path):
    """By the recipe of `make dist`. `test_public` tests that the wheel works."""
    pytest.importorskip("build", reason="the extra `dev` has it")
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=all"]
    before = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    *_, line = recipes()["dist"]
    command = [*line.replace("$(BIN)/python", sys.executable).split(), "--outdir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == before
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    stem = f"preqn_jax-{PROJECT['version']}"
    assert wheel.name.startswith(stem + "-") and source.name == stem + ".tar.gz"
    with tarfile.open(source) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    library = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert library == {n for n in names if n.startswith("preqn_jax/") and "." in n.split("/")[-1]}
    assert not any(name.startswith(("tests", "experiments", "docs")) for name in names)
