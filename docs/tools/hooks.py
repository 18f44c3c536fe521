"""What `make docs` does to the pages, which are written to be read on GitHub as well.

A link there may lead anywhere in the repository. The site is docs/ alone, so whatever pages link to
outside of it comes along: pictures and notebooks as they are, Markdown as pages, code as a page
that shows it. Formulas between dollars become MathML, which browsers draw without a script.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<to>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
AS_THEY_ARE = (".png", ".gif", ".svg", ".ipynb", ".json", ".md")
MATH = re.compile(  # of arithmatex, of a notebook's text, or what holds no formula: code
    r'<(?:span|div) class="arithmatex">\\[(\[](?P<page>.*?)\\[)\]]</(?:span|div)>'
    r"|(?P<code><(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>)"
    r"|\$\$(?P<block>[^$]+)\$\$|\$(?P<inline>[^$<>\n]+)\$",
    re.S,
)
CODE = re.compile(r"(?s:<pre\b.*?</pre>)|<code>(?P<words>[^<>]+)</code>")
FLAG = re.compile(r"\S*-\S*")  # what browsers would break behind a hyphen
LONG = re.compile(r"\w{30,}")  # and the names of tests, which they would not break at all
PRIMES = {  # a prime is raised in itself: raised once more it is a dot
    r"<msup>(<mi>[^<]*</mi>)<mi>(&#x02032;)</mi></msup>": r"<mrow>\1<mo>\2</mo></mrow>",
    r"<msubsup>(<mi>[^<]*</mi>)(<mi>[^<]*</mi>)<mi>(&#x02032;)</mi></msubsup>": (
        r"<msub><mrow>\1<mo>\3</mo></mrow>\2</msub>"
    ),
}


def site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    path = path.removeprefix("docs/")
    return path if path.endswith(AS_THEY_ARE) else f"{path}.md"


def repository(uri: str) -> str:
    """And back, of a page."""
    return uri if (ROOT / uri).exists() and uri != "README.md" else f"docs/{uri}"


def targets(path: str, text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The links of a page to what is in the repository: each, and the path there."""
    for link in LINK.finditer(text):
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), link["to"]))
        if not to.startswith("..") and (ROOT / to).exists():
            yield link, to


def shown(path: str) -> str:
    """A page that shows a file of code."""
    text, kind = (ROOT / path).read_text(), Path(path).suffix[1:]
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n`````{kind}\n{text}\n`````\n"


@event_priority(100)  # before the notebooks are looked for
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to outside of docs/, and what those pages link to."""
    todo = [page.src_uri for page in files.documentation_pages()]
    while todo:
        path = repository(todo.pop())
        for _, to in targets(path, (ROOT / path).read_text() if path.endswith(".md") else ""):
            uri = site(to)
            if (ROOT / to).is_dir() or files.get_file_from_path(uri):
                continue
            if to.endswith(AS_THEY_ARE):
                files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
                todo.append(uri)
            else:
                files.append(File.generated(config, uri, content=shown(to)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site; a folder has no page there, and is named only."""
    path, here = repository(page.file.src_uri), posixpath.dirname(page.file.src_uri)
    for link, to in reversed(list(targets(path, markdown))):
        there = posixpath.relpath(site(to), here or ".")
        new = f"[{link['text']}]({there}{link['anchor'] or ''})"
        new = link["text"] if (ROOT / to).is_dir() else new
        markdown = markdown[: link.start()] + new + markdown[link.end() :]
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML; flags in one piece, long names in several."""
    html = CODE.sub(_breaks, html)
    return MATH.sub(_formula, html) if "arithmatex" in html or "jp-Notebook" in html else html


def _breaks(found: re.Match[str]) -> str:
    if not (words := found["words"]):
        return found[0]
    words = FLAG.sub(r'<span class="word">\g<0></span>', words)
    return f"<code>{LONG.sub(lambda name: name[0].replace('_', '_<wbr>'), words)}</code>"


def _formula(found: re.Match[str]) -> str:
    if found["code"]:  # scripts of notebooks fetch what draws diagrams, of which they have none
        return "" if found["code"].startswith("<script") else found["code"]
    display = "block" if found["block"] or found[0].startswith("<div") else "inline"
    latex = html.unescape(found["page"] or found["block"] or found["inline"])
    mathml = converter.convert(latex, display=display)
    for raised, beside in PRIMES.items():
        mathml = re.sub(raised, beside, mathml)
    return mathml
