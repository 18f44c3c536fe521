"""The site of `make docs`: it builds without a warning, loads nothing from other sites, and has
every link, formula and public name.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import preqn_jax

ROOT = Path(__file__).parent.parent

for name in ("material", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
    pytest.importorskip(name, reason="the extra `docs` is not installed")
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page loads, what it links to, its anchors, and its text without code."""

    def __init__(self, html):
        super().__init__()
        self.loads, self.links, self.anchors, self.text, self._code = [], [], set(), "", 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name")}
        if "src" in given or (tag == "link" and given.get("rel") != "canonical"):
            self.loads.append(given.get("src") or given.get("href") or "")
        elif tag == "a":
            self.links.append(given.get("href") or "")
        self._code += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag):
        self._code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data):
        self.text += "" if self._code else data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return {path: Page(path.read_text()) for path in folder.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site):
    loads = {url for page in site.values() for url in page.loads}
    assert [url for url in loads if re.match(r"(https?:)?//", url)] == []


def test_every_link_and_picture_is_there(site):
    for path, page in site.items():
        if path.name == "404.html":  # whose links are for the server
            continue
        for url in (*page.links, *page.loads):
            to, _, anchor = unquote(url).partition("#")
            if re.match(r"[a-z]+:", to):
                continue
            there = (path.parent / to).resolve() if to else path
            assert there.exists(), f"{path}: {url}"
            if anchor and there in site and anchor != "__codelineno":
                assert anchor in site[there].anchors, f"{path}: {url}"


def test_no_formula_and_no_directive_is_left_as_it_was_typed(site):
    pages = {path: page for path, page in site.items() if "preqn_jax" not in path.parts}
    assert sum("<math" in path.read_text() for path in pages) >= 4
    for path, page in pages.items():
        assert not re.search(r"\\\(|\\\[|\$[^$\s][^$\n]*\$|^:::", page.text, re.M), path


def test_every_public_name_has_an_entry(site):
    anchors = set().union(*(page.anchors for page in site.values()))
    for name in set(preqn_jax.__all__) - {"__version__"}:
        thing = getattr(preqn_jax, name)
        module = getattr(thing, "__module__", None)
        homes = {f"preqn_jax.{name}"} if module is None else {f"{module}.{thing.__name__}"}
        homes |= {f"{(module or '').rpartition('.')[0]}.{name}"}  # of the package that hands it on
        assert homes & anchors, name
