"""The how-to pages: what they show is run, checked and used."""

import re
import sys
from pathlib import Path

import pytest
from test_cli import call

import rcprobe
from rcprobe.plugins import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "add-a-dataset": ("my_rivers", "rivers"),
    "add-a-metric": ("my_surprise", "surprise"),
    "add-a-decoder": ("my_order", "threshold"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The modules of the pages, written and made plugins."""
    folder = tmp_path_factory.mktemp("pages")
    for page, (module, _) in PAGES.items():
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"<!-- the tests run this page -->\n```python\n(.*?)```", text, re.DOTALL)
        (folder / f"{module}.py").write_text(block, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("RCPROBE_PLUGINS", ",".join(module for module, _ in PAGES.values()))
        registry.cache_clear()
        yield folder
    registry.cache_clear()
    for module, _ in PAGES.values():
        sys.modules.pop(module, None)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("name", [name for _, name in PAGES.values()])
def test_what_a_page_adds_keeps_its_contract(name):
    done = call("plugins", "check", name)
    assert done.code is None, done.out
    assert done.out.startswith(f"{name}: every check that applies passed")


@pytest.mark.usefixtures("written")
def test_they_are_used_as_the_pages_say(tmp_path):
    assert len(rcprobe.load_dataset("rivers", {"templates": 1}).facts[0].forward) == 1
    config = (DOCS / "add-a-decoder.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    (tmp_path / "run.toml").write_text(config, encoding="utf-8")
    more = ("--limit", "1", "--option", "width=8", "--data-option", "length=4", "--metric", "answers")
    assert call("run", "--config", str(tmp_path / "run.toml"), *more, "--quiet").code is None
    m = rcprobe.load("radd", options={"width": 8})
    letters = rcprobe.load_dataset("letters", {"length": 3}).limited(2)
    report = rcprobe.run(m, letters, metrics=["surprise"], progress=False)
    assert set(report.frame("surprise").columns) >= {"forward", "reverse", "kept"}
    assert report.signatures["surprise"].findings[0].condition.label == "less than a nat is lost in reverse"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
