"""The site builds without a warning, and what must not happen in it is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rcprobe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def build(source, into, *options):
    """Build a site with our configuration in a process of its own; a warning fails it."""
    words = ["-q", "-W", "--keep-going", "-c", str(DOCS), *options, "-d", str(into / "trees"), str(source), str(into)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    into = tmp_path_factory.mktemp("site")
    done = build(DOCS, into)
    assert done.returncode == 0, done.stderr
    return into


def test_every_public_name_is_described(site):
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    described = set(re.findall(r'id="rcprobe\.(\w+)"', page))
    assert described >= set(rcprobe.__all__)


def test_every_command_is_described_with_its_flags(site):
    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    for command in ("run", "report", "runs list", "plugins check", "models inspect", "demo", "reproduce"):
        assert f"rcprobe {command}" in text
    assert "--data-option" in text
    assert re.search(r"Training steps\. +\[default: 1000\]", text)


def test_formulas_are_drawn_without_a_script(site):
    page = (site / "theory.html").read_text(encoding="utf-8")
    assert page.count("<math") > 150
    assert "$" not in re.sub(
        r"<pre>.*?</pre>", "", page.partition("<article")[2].partition("</article>")[0], flags=re.S
    )
    assert not re.search(r"<script[^>]*mathjax", page, flags=re.IGNORECASE)


def test_pages_fetch_nothing(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//', text), page


def test_mistakes_fail_the_build(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "_static").mkdir()
    (source / "index.md").write_text(
        "# Start\n\n[gone](gone.md), [no heading](#nowhere), $\\frac{$\n\n```{toctree}\nnot-there\n```\n"
    )
    (source / "forgotten.md").write_text("# Forgotten\n")
    done = build(source, tmp_path / "into")
    assert done.returncode == 1
    for mistake in ("gone.md", "nowhere", "formula", "not-there", "forgotten.md"):
        assert mistake in done.stderr, mistake
    for name in rcprobe.__all__:
        assert f"rcprobe.{name} is public and isn't in" in done.stderr


def named_places():
    """What the table of CONTRIBUTING names, each in its folder: ``rcprobe/a.py``, ``b.py`` are both in ``rcprobe``."""
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| place | holds |")[2].partition("\n\n")[0]
    )
    for line in table.splitlines():
        names = re.findall(r"`([^`]+)`", line.partition(" | ")[0])
        for name in names:
            yield ROOT / name if name == names[0] or (ROOT / name).exists() else (ROOT / names[0]).parent / name


def test_the_table_of_places_is_whole_and_true():
    named = set(named_places())
    assert [place for place in named if not place.exists()] == []
    parts = [p for folder in ("rcprobe", "plugins/rcprobe_plugins") for p in (ROOT / folder).iterdir()]
    there = {p for p in parts if p.is_dir() or p.suffix == ".py"} - {p for p in parts if p.name.startswith("__")}
    assert there - named - {place.parent for place in named if place.suffix} == set()


def test_no_page_holds_what_a_merge_left_undecided():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    assert len(pages) > 20
    assert not [page.name for page in pages if re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(), re.MULTILINE)]


def test_relative_links_of_pages_outside_the_site_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), (page, link)
