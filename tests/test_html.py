"""The report's page: its text as somebody reads it, and its life in a browser."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import synthetic
from test_cli import call

from rcprobe.errors import MissingExtraError, RcprobeError
from rcprobe.facts import Dataset
from rcprobe.report import SeedRun
from rcprobe.report.export import to_csv, to_latex, to_markdown
from rcprobe.report.fact_table import fact_table
from rcprobe.report.figures import figures, save_figures, write_figures
from rcprobe.report.html import page
from rcprobe.report.plain import answer
from rcprobe.visible import visible

HOSTILE = {
    "_3": ("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>"),
    "_4": ("Ahmed أحمد", "שלום עולם"),
    "_5": ("👩‍👩‍👧 family", "lone \ud800 half"),
    "_6": ("bell\x07\x00", "turned \u202e round"),
    "_7": ("=1+1|`*_", "${x}$ \\input{y} & 100%"),
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """The text a person reads, one line a block, and what a browser would fetch or say."""

    BLOCKS = frozenset({"p", "h1", "h2", "h3", "li", "tr", "dt", "dd", "figcaption", "summary", "article"})
    LOADING = frozenset({"src", "srcset", "poster", "data", "action", "formaction", "background"})

    def __init__(self, text):
        super().__init__()
        self.lines, self.links, self.images, self.hidden, self.data, self.ids = [""], [], [], [], "", []
        self.feed(text)
        self.text = "\n".join(" ".join(line.split()) for line in self.lines if line.strip())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attributes if k in self.LOADING or (k in ("href", "xlink:href"))]
        if tag == "svg" and found.get("role") == "img":
            self.images.append(found["aria-label"])
        if tag in ("script", "style", "svg"):
            self.hidden.append("data" if found.get("type") == "application/json" else tag)
        if tag in self.BLOCKS:
            self.lines.append("")
        elif tag in ("td", "th", "a", "strong", "span"):
            self.lines[-1] += " "

    def handle_endtag(self, tag):
        if tag in ("script", "style", "svg"):
            self.hidden.pop()

    def handle_data(self, data):
        if not self.hidden:
            self.lines[-1] += data
        elif self.hidden[-1] == "data":
            self.data += data


@pytest.fixture(scope="module")
def report():
    return synthetic.report(given=synthetic.facts(40, **HOSTILE))


@pytest.fixture(scope="module")
def html(report):
    return page(report)


@pytest.fixture(scope="module")
def read(html):
    return Reader(html)


def test_the_answer_comes_first_with_verdict_strength_and_control(read):
    start = read.text[: read.text.index("Know first") if "Know first" in read.text else 4000]
    assert (
        "Asked forward, the model is right 100% of the time; asked in reverse, 50% (rivals: full vocabulary)." in start
    )
    assert "Storage, routing, dynamics and outcome: present." in start
    assert re.search(
        r"routing same target present .* 0\.8\d \[0\.\d\d, 0\.\d\d\] \(correlation\), against facts shuffled", start
    )
    assert re.search(r"outcome swapped present .* (2\.9|3\.0)\d \[.*\] nats, against other trained answers", start)
    assert "Trained, forward Person 0 was born in Town 0." in start
    assert "Never trained, reverse Town 0 is the birthplace of Person 0." in start


def test_every_figure_has_panels_a_finding_and_a_description(read, html):
    assert len(read.images) == 13
    assert all("The numbers follow" in label for label in read.images)
    asked = "(full vocabulary{} forward asks for b, reverse for a)"
    assert f"From the first step to the last {asked.format(';')}: forward query 0.01 → 0.8" in read.text
    assert f"At the last step {asked.format(',')}: forward query 100%; reverse query 50%." in read.text
    assert "At the last step, where both queries ask for a: 0.4" in read.text
    tables = re.findall(r'download="(\w+)\.csv" href="data:text/csv;base64,([^"]*)"', html)
    assert [key for key, _ in tables] == [
        "probability",
        "accuracy",
        "signatures",
        "distance",
        "heads",
        "cosine",
        "transfer",
    ]
    first = list(csv.DictReader(io.StringIO(base64.b64decode(tables[0][1]).decode())))
    assert list(first[0]) == ["panel", "series", "training step", "seed", "value", "low", "high"]
    assert first[0]["panel"].splitlines() == ["full vocabulary", "forward asks for b, reverse for a"]
    assert first[0]["value"].startswith("0.00")
    assert re.search(r"<td>forward query</td><td>0</td><td>all</td><td>0.00[1-9]\d\d?</td>", html)


def test_a_metric_of_ones_own_has_its_pairing_and_says_what_is_not_judged(report):
    found = report.signatures["gradient_alignment"].findings[0]
    beside = replace(found, condition=replace(found.condition, label="aside", judged=False))
    other = replace(report.signatures["attention_correlation"], title="mine", pairing="swapped")
    first = replace(report.signatures["gradient_alignment"], title="mine", findings=(beside, found))
    own = replace(report, runs=(), transfer=(), signatures={"mine": first, "mine (swapped)": other})
    text = Reader(page(own)).text
    assert re.search(r"mine same target present a measure of its own 0\.\d.* against its control", text)
    assert re.search(r"mine swapped present a measure of its own 0\.8.* against facts shuffled", text)
    assert "beside it: aside" in text
    assert text.count("shown beside, not judged.") == 1
    assert text.count("the margin is 0.02.") == 1
    assert "control 0.1" in text
    assert re.search(r"beside it: aside \| 0\.\d+ cosine \| 0[^|]* \|  \|", to_markdown(own)), "it has no margin"


def test_the_accuracy_figure_begins_with_the_reading_of_the_answer(report):
    dataset = Dataset("towns", synthetic.facts(25), {"few": lambda query: ()})
    run = synthetic.seed_run(0, synthetic.table(25))
    steps = tuple(
        replace(step, accuracy={"swapped": {"full vocabulary": (0.5, 0.1), "few": (1.0, 0.8)}}) for step in run.steps
    )
    found = synthetic.judged(dataset, [replace(run, steps=steps)])
    drawn = figures(found)[1]
    assert drawn.says.startswith("At the last step (few, ")
    assert drawn.panels[0].title.startswith("few\n")
    assert "(rivals: few" in answer(found)[0]


def test_ids_are_unique_and_headings_step_down_by_one(read, html):
    assert len(read.ids) == len(set(read.ids))
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    for landmark in ("<header", "<main", "<nav aria-label", 'role="search"', 'lang="en"', "<caption>"):
        assert landmark in html


def test_nothing_is_fetched_and_only_our_script_may_run(read, html):
    assert all(link.startswith(("#", "data:text/csv")) for link in read.links)
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_texts_from_outside_are_escaped_and_seen(report, read, html):
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "\u202e" not in html
    assert "turned ⟨U+202E⟩ round" in read.text
    assert "bell⟨U+0007⟩⟨U+0000⟩" in read.text
    assert "lone ⟨U+D800⟩ half" in read.text
    assert "👩‍👩‍👧 family" in read.text
    assert "<bdi>שלום עולם</bdi>" in html
    rows = json.loads(read.data)["rows"]
    assert len(rows) == 40
    assert rows[3][:2] == list(HOSTILE["_3"])
    assert rows[4][2] == "\u2068Ahmed أحمد\u2069 was born in \u2068שלום עולם\u2069."  # each name keeps its direction
    assert "$_{x}$ &lt;b&gt;" in html  # a parameter group's name in a figure is no mathematics


def test_visible_keeps_what_belongs_to_words():
    assert visible("plain") == "plain"
    assert visible("می\u200cخواهم") == "می\u200cخواهم"
    assert visible("a\u200db") == "a⟨U+200D⟩b"
    assert visible("a\tb\n\u2028\ufeff") == "a⟨U+0009⟩b⟨U+000A⟩⟨U+2028⟩⟨U+FEFF⟩"


def test_the_table_of_facts_says_which_transfer(report):
    table = fact_table(report)
    assert table.counts == {"transfers": 20, "forward only": 20, "not learned": 0, "no value": 0}
    columns = [column.key for column in table.columns]
    row = dict(zip(columns, table.rows[1], strict=True))
    assert (row["status"], row["right_forward"], row["right_reverse"]) == ("forward only", 1.0, 0.0)
    assert row["forward"] == "Person 1 was born in Town 1."
    assert row["p_forward"] == pytest.approx(np.exp(-0.2), rel=0.1)
    assert row["gain"] == pytest.approx(3.0, abs=0.3)
    assert row["cosine"] == pytest.approx(0.3, abs=0.2)


def test_a_failed_seed_is_said_and_left_out():
    pairs = synthetic.table(30)
    runs = [
        synthetic.seed_run(0, pairs),
        synthetic.seed_run(1, pairs, steps=(0,), failure="training diverged at step 7 <b>"),
    ]
    text = Reader(page(synthetic.judged(Dataset("towns", synthetic.facts(30)), runs))).text
    assert "seed 1 failed: training diverged at step 7 <b>" in text[: text.index("Signatures\n")]
    assert "seed 1 failed and is in no average" in text


def test_a_run_without_a_finished_seed_says_nothing_else():
    data = Dataset("towns", synthetic.facts(5))
    for runs in ([], [SeedRun(0, (), "training diverged", "")]):
        text = Reader(page(synthetic.judged(data, runs))).text
        assert "No seed finished, so this run says nothing about the question." in text
        assert text.count("Not drawn:") == 6
        assert "Nothing was measured by a seed that finished." in text
        assert not re.search(r"\bnan\b", text)


@pytest.mark.parametrize("replicate", ["seed", "fact"])
def test_undefined_numbers_are_said_never_drawn(replicate):
    text = Reader(page(synthetic.report(count=25, value=np.nan, replicate=replicate))).text
    assert not re.search(r"\bnan", text)
    assert text.count("none of its values is defined") == 6
    assert "25 no value: it couldn't be asked" in text
    assert "forward accuracy is undefined (full vocabulary, same_target)" in text


def test_all_excluded_and_why():
    reason = "none of 160 pairs could be asked (160: text <longer> than the window)"
    skipped = {f"{m.name} ({m.pairings[0]})": reason for m in synthetic.METRICS}
    excluded = {"swapped": {"text <longer> than the window": 160}}
    report = synthetic.report(steps=(0,), names=(), excluded=excluded, skipped=skipped, value=np.nan)
    text = Reader(page(report)).text
    assert "160 pairs (swapped): text <longer> than the window" in text
    assert f"storage (swapped) wasn't measured: {reason}" in text
    assert f"undefined ({reason})" in text or "not trained" in text


def test_a_single_step_is_drawn_as_points_and_growth_has_no_value():
    text = Reader(page(synthetic.report(count=25, seeds=1, steps=(0,)))).text
    assert "At the only step (full vocabulary; forward asks for b, reverse for a): forward query 0.01" in text
    assert "No value: growth needs two probed steps." in text


def test_ten_thousand_facts_fit_a_page_that_reads_without_a_script():
    text = page(synthetic.large())
    assert len(text.encode()) < 10e6
    read = Reader(text)
    assert "The first 25 of 10,000 facts" in read.text
    assert "Person 24 was born in Town 24." in read.text
    assert "Person 25 was born in Town 25." not in read.text
    assert len(json.loads(read.data)["rows"]) == 10_000


def test_figures_as_files_with_their_numbers(report, tmp_path):
    written = save_figures(report, tmp_path / "figures")
    names = {path.name for path in written}
    for key in ("probability", "accuracy", "signatures", "distance", "heads", "cosine"):
        assert {f"{key}.{kind}" for kind in ("svg", "png", "pdf", "csv")} <= names
    assert all(path.stat().st_size > 100 for path in written)
    (tmp_path / "again").mkdir()
    for path in write_figures(figures(report)[:1], tmp_path / "again"):
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes()
    with pytest.raises(RcprobeError, match="nothing was overwritten"):
        save_figures(report, tmp_path / "figures")


def test_intervals_over_seeds_are_those_of_student():
    report = synthetic.report(count=25, seeds=4, replicate="seed")
    curve = figures(report)[0].panels[0].series[1]
    last = np.array([np.log(values[-1]) for values in curve.seeds.values()])
    half = 3.182446 * last.std(ddof=1) / 2
    assert np.log(curve.points[-1].value) == pytest.approx(last.mean())
    assert np.log(curve.points[-1].high) == pytest.approx(last.mean() + half)


def test_tables_for_papers_escape_what_they_must(report):
    markdown, latex, table = to_markdown(report), to_latex(report), to_csv(report)
    assert "| routing (same target) | r of scores | 0.8" in markdown
    assert "routing (same target) & r of scores & 0.8" in latex
    assert r"$\tilde W$[a, b]" in latex
    assert "present" in markdown
    rows = table.splitlines()
    assert rows[0].startswith("what,pairing,measured,value,low,high,unit,margin")
    assert len(rows) == 1 + 4 + 2
    assert "nan" not in table
    assert rows[-1].startswith('accuracy,swapped,"reverse, full vocabulary",0.5,')


def test_without_matplotlib_the_error_names_the_way_out(report, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rcprobe\[report\]'"):
        report.to_html(tmp_path / "report.html")
    with pytest.raises(MissingExtraError, match="matplotlib"):
        save_figures(report, tmp_path / "figures")
    report.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.json", "values.csv"]


def test_saving_a_report_writes_its_page(report, tmp_path):
    report.save(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    with pytest.raises(RcprobeError, match="can't write there"):
        report.to_html(tmp_path / "nowhere" / "report.html")


def test_a_kept_run_gives_its_page_and_the_command_that_repeats_it(tmp_path):
    run, asked = str(tmp_path / "run"), ("letters", "--limit", "3", "--option", "width=8", "--steps", "2")
    assert call("run", "radd", *asked, "--quiet", "--out", run).code is None
    text = Reader((tmp_path / "run" / "report.html").read_text()).text
    assert "rcprobe run radd letters --steps 2 --seeds 1 --limit 3 --option width=8" in text
    assert "rcprobe.TrainConfig(steps=2" in text
    for kind, start in (("html", "<!doctype html>"), ("md", "# radd on letters"), ("latex", "%"), ("csv", "what,")):
        done = call("report", run, "--format", kind)
        assert done.code is None, done.err
        assert done.out.startswith(start)
    done = call("report", run, "--out", str(tmp_path / "x.html"))
    assert (done.code, done.out, done.err) == (None, "", f"wrote {tmp_path / 'x.html'}\n")
    assert Reader((tmp_path / "x.html").read_text()).text == text
    assert call("report", run, "--out", str(tmp_path / "new" / "x.html")).code is None
    shutil.copytree(run, tmp_path / "again")
    both = call("compare", run, str(tmp_path / "again"), "--format", "md")
    assert "run and again probed the same weights" in both.out
    assert "1 seed; a comparison needs 5" in both.out
    for name, why in (("x.md", "say with --format"), (".", "is a folder")):
        wrong = call("report", run, "--out", str(tmp_path / name))
        assert wrong.code == 2
        assert why in wrong.err
    assert not (tmp_path / "x.md").exists()
    refused = call("report", str(tmp_path / "none"))
    assert refused.code not in (None, 0)
    assert "none" in refused.err


# a browser: what the page does, not only what it says

DRIVER = """<script>
window.errors = [];
window.addEventListener("error", (e) => errors.push(e.message));
window.addEventListener("load", () => {
  const by = (id) => document.getElementById(id), said = {};
  const rows = () => [...by("fact-table").tBodies[0].rows].map((r) => r.cells[0].textContent);
  const type = (text) => { by("search").value = text; by("search").dispatchEvent(new Event("input")); };
  said.first = rows().length; said.shown = by("shown").textContent;
  by("next").click(); said.second = rows()[0]; said.page = by("page").textContent;
  type("PERSON 1234"); said.found = rows();
  type("nobody at all"); said.none = by("shown").textContent;
  type(""); by("status").value = "forward only"; by("status").dispatchEvent(new Event("change"));
  said.filtered = by("shown").textContent;
  const sort = by("fact-table").tHead.rows[0].cells[7].querySelector("button");
  sort.click(); said.sorted = sort.parentElement.getAttribute("aria-sort"); said.top = rows()[0];
  sort.click(); said.again = sort.parentElement.getAttribute("aria-sort"); said.bottom = rows()[0];
  const box = (e) => e.getBoundingClientRect();
  said.headline = box(document.querySelector(".lead p")).bottom < 700;
  said.figures = [...document.querySelectorAll(".panel svg")].every((s) => box(s).width > 250 && box(s).height > 150);
  said.wide = document.documentElement.scrollWidth > window.innerWidth;
  said.unnamed = [...document.querySelectorAll("button, input, select, a")]
    .filter((e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).length;
  by("search").focus(); said.focus = document.activeElement.id;
  said.errors = errors; said.fetched = performance.getEntriesByType("resource").map((e) => e.name);
  const held = document.createElement("script"); held.type = "application/json"; held.id = "said";
  held.textContent = JSON.stringify(said).replaceAll("<", "\\\\u003c"); document.body.append(held);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page's script is NOT tested")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path, width):
    text = page(synthetic.large(3000))
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text).group()
    path = tmp_path / "driven.html"
    path.write_text(text.replace(policy, "").replace("<head>", "<head>" + DRIVER))
    dom, log = browse(path, width, tmp_path)
    said = json.loads(re.search(r'id="said">(.*?)</script>', dom, re.DOTALL).group(1))
    assert said["errors"] == []
    assert said["fetched"] == []
    assert said["first"] == 50
    assert said["shown"] == "Facts 1 to 50 of 3,000."
    assert (said["second"], said["page"]) == ("Person 50", "page 2 of 60")
    assert said["found"] == ["Person 1234"]
    assert said["none"] == "None of 3,000 facts matches."
    assert said["filtered"] == "Facts 1 to 50 of 1,500 that match, of 3,000 in all."
    assert (said["sorted"], said["again"]) == ("descending", "ascending")
    assert said["top"] != said["bottom"]
    assert said["headline"]
    assert said["figures"]
    assert not said["wide"]
    assert said["unnamed"] == 0
    assert said["focus"] == "search"
    assert "CONSOLE" not in log


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page's script is NOT tested")
def test_in_a_browser_under_its_own_policy(tmp_path, html):
    path = tmp_path / "report.html"
    path.write_text(html)
    dom, log = browse(path, 1280, tmp_path)
    assert "Facts 1 to 40 of 40." in dom  # our script ran
    assert "CONSOLE" not in log


def browse(path, width, folder):
    """The document after its scripts ran, and what the browser logged."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000"]
    command += ["--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
