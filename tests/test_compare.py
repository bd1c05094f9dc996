"""Runs side by side: what is compared with what, by which statistics, and how it is written."""

import json
import math
import re
import shutil
from dataclasses import fields, replace
from io import StringIO
from itertools import pairwise

import numpy as np
import pytest
import synthetic
from rich.console import Console
from scipy import stats
from test_cli import call, refused, strict
from test_html import CHROMIUM, Reader, browse

import rcprobe
from rcprobe.commands.compare import Format, _written
from rcprobe.comparison import contrasts, figures, grids, measures
from rcprobe.comparison.export import sheet
from rcprobe.comparison.html import page
from rcprobe.comparison.terminal import print_comparison
from rcprobe.differences import Difference
from rcprobe.errors import UsageError
from rcprobe.facts import Dataset
from rcprobe.measured import PairTable
from rcprobe.report import build
from rcprobe.report.export import latex_table
from rcprobe.report.panels import Point
from rcprobe.report.sheet import Grid, _print_grid

LIGHT = (synthetic.METRICS[2], synthetic.METRICS[4])  # dynamics and accuracy: quick to judge
MOST = synthetic.METRICS[:3] + synthetic.METRICS[4:]
HOSTILE = "<img src=x onerror=alert(1)>|*_\u202eturned $\\input{y} & 100%"


def run(seeds=(0,), replicate="fact", count=25, given=None, info=None, steps=(0, 100), change=None, names=LIGHT):
    """A made-up report; ``change`` takes a metric's name and columns, and gives those to put in their place."""
    dataset = Dataset("towns", given or synthetic.facts(count), replicate=replicate)
    pairs = synthetic.table(len(dataset.facts), distances=1)
    runs = []
    for seed in seeds:
        found = synthetic.seed_run(seed, pairs, steps=steps, names=names)
        found = replace(found, steps=tuple(_changed(step, change or (lambda *_: {})) for step in found.steps))
        runs.append(found)
    return synthetic.judged(dataset, runs, info)


def _changed(step, change):
    measured = tuple(replace(m, columns={**m.columns, **change(m.metric, m.columns)}) for m in step.measured)
    right = {
        way: float(m.columns[f"{way}, full vocabulary"].mean())
        for m in measured
        for way in ("forward", "reverse")
        if m.metric == "accuracy"
    }
    accuracy = {"swapped": {"full vocabulary": tuple(right.values())}} if right else step.accuracy
    return replace(step, measured=measured, accuracy=accuracy)


def weaker(metric, columns):
    """Half the cosine, and nothing right in reverse."""
    if metric == "gradient_alignment":
        return {"matched": 0.5 * columns["matched"]}
    if metric == "accuracy":
        return {"reverse, full vocabulary": 0 * columns["reverse, full vocabulary"]}
    return {}


@pytest.fixture(scope="module")
def reports():
    return {
        "strong": run(names=MOST),
        "weak": run((1,), change=weaker, names=MOST),
        HOSTILE: run((2,), given=synthetic.facts(30), info={"model": HOSTILE}),
    }


@pytest.fixture(scope="module")
def found(reports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "CORRELATION_RESAMPLES", 250)
        return rcprobe.compare(reports)


@pytest.fixture(scope="module")
def html(found):
    return page(found)


def of(found, label, a="strong", b="weak"):
    """The contrast of two runs whose measure begins so."""
    (one,) = [c for c in found.contrasts if c.measure.label.startswith(label) and (c.a, c.b) == (a, b)]
    return one


# --- what is compared, and how ---


def test_runs_of_the_same_facts_are_paired_by_fact(reports, found):
    contrast = of(found, "dynamics: cos matched −")
    last = [reports[name].frame("gradient_alignment").query("step == 100") for name in ("strong", "weak")]
    apart = [(frame.matched - frame.same_target).to_numpy() for frame in last]
    d = apart[0] - apart[1]
    assert contrast.difference.value == pytest.approx(d.mean())
    rng = np.random.default_rng(3)
    means = d[rng.integers(25, size=(4000, 25))].mean(axis=1)
    interval = contrast.difference.low, contrast.difference.high
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert contrast.difference.n == 25
    assert contrast.found == "higher"


def test_a_difference_is_that_of_the_estimates_shown(reports, found):
    several = [run((0, 1), names=synthetic.METRICS[:1]), run((2, 3), names=synthetic.METRICS[:1])]
    both = rcprobe.compare(dict(zip(("strong", "weak"), several, strict=True)))
    for label, name, pair, made in (
        ("routing: r of scores", "attention_correlation", [reports["strong"], reports["weak"]], found),
        ("storage: growth", "storage", several, both),
    ):
        estimates = [report.signatures[name].findings[0].estimate.value for report in pair]
        assert of(made, label).difference.value == pytest.approx(estimates[0] - estimates[1])


def test_correlations_are_compared_in_the_same_resamples_of_facts(reports, found):
    def cells(name):
        frame = reports[name].frame("attention_correlation").query("step == 100")
        return [
            frame.pivot(index="fact", columns=["layer", "head"], values=way).to_numpy()
            for way in ("forward", "reverse")
        ]

    def pooled(both, drawn):
        x, y = (side[drawn] - side[drawn].mean(axis=0) for side in both)
        r = (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        return math.tanh(np.arctanh(r).mean())

    a, b, rng = cells("strong"), cells("weak"), np.random.default_rng(5)
    apart = [pooled(a, drawn) - pooled(b, drawn) for drawn in rng.integers(25, size=(2000, 25))]
    contrast = of(found, "routing: r of scores")
    assert contrast.difference.value == pytest.approx(pooled(a, np.arange(25)) - pooled(b, np.arange(25)))
    interval = contrast.difference.low, contrast.difference.high
    assert interval == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])), abs=0.04)


def test_effect_sizes_are_compared_in_the_same_resamples_of_facts(reports, found):
    def growth(name):
        frame = reports[name].frame("storage")
        apart = (frame.stored - frame.mismatched).groupby([frame.step, frame.fact]).mean()
        return (apart[100] - apart[0]).to_numpy()

    def d_z(x):
        correction = math.gamma(12) / (math.sqrt(12) * math.gamma(11.5))
        return correction * x.mean(axis=-1) / x.std(axis=-1, ddof=1)

    a, b, drawn = growth("strong"), growth("weak"), np.random.default_rng(6).integers(25, size=(4000, 25))
    apart, difference = d_z(a[drawn]) - d_z(b[drawn]), of(found, "storage: growth").difference
    assert difference.value == pytest.approx(d_z(a) - d_z(b))
    interval = tuple(np.quantile(apart, [0.025, 0.975]))
    assert (difference.low, difference.high) == pytest.approx(interval, abs=0.15 * (interval[1] - interval[0]))
    assert difference.p == pytest.approx(2 * stats.t.sf(abs(difference.value) / apart.std(), 24), abs=0.05)


def test_runs_whose_replicate_is_a_seed_are_compared_by_welchs_test():
    a, b = run(range(5), "seed"), run(range(10, 16), "seed", change=weaker)
    contrast = of(rcprobe.compare({"strong": a, "weak": b}), "dynamics: cos matched −")
    means = []
    for report in (a, b):
        last = report.frame("gradient_alignment").query("step == 100")
        means.append((last.matched - last.same_target).groupby(last.seed).mean())
    known = stats.ttest_ind(*means, equal_var=False)
    assert contrast.difference.p == pytest.approx(known.pvalue)
    assert contrast.difference.low == pytest.approx(known.confidence_interval().low)
    assert contrast.difference.unit == "seeds"


def test_p_values_are_holms_over_all_differences_of_the_comparison(found):
    p = sorted((c.difference.p, i) for i, c in enumerate(found.contrasts))
    largest, expected = 0.0, {}
    for rank, (value, i) in enumerate(p):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        expected[i] = largest
    assert len(p) == 5
    assert [c.adjusted_p for c in found.contrasts] == pytest.approx([expected[i] for i in range(len(p))])


def test_too_few_replicates_are_said_and_get_no_p():
    few = rcprobe.compare({"strong": run(count=12), "weak": run((1,), count=12, change=weaker)})
    contrast = of(few, "dynamics: cos matched −")
    assert (contrast.found, contrast.why) == ("too few", "12 groups of facts that share no name; a comparison needs 20")
    assert math.isnan(contrast.adjusted_p)
    assert not math.isnan(contrast.difference.low)
    assert f"all {len(few.contrasts)} rest on too few replicates." in few.to_markdown()


def test_the_same_run_twice_is_never_told_apart():
    same = rcprobe.compare({"strong": run(), "weak": run()})
    assert {c.found for c in same.contrasts} == {"not told apart"}
    assert {c.difference.value for c in same.contrasts} == {0.0}
    assert "strong and weak probed the same weights" in same.to_markdown()


def without(report, metric, fact):
    """The report as if a fact couldn't be asked by one metric: it isn't in that metric's table."""

    def less(measured):
        if measured.metric != metric:
            return measured
        kept = measured.table.fact != fact
        table = PairTable(*(getattr(measured.table, f.name)[kept] for f in fields(PairTable)))
        return replace(measured, table=table, columns={n: c[kept] for n, c in measured.columns.items()})

    (one,) = report.runs
    steps = tuple(replace(step, measured=tuple(map(less, step.measured))) for step in one.steps)
    return replace(report, runs=(replace(one, steps=steps),))


def growth(report, name, own, control, start=None):
    """Each fact's own column less its control, at the end (and less that at ``start``)."""
    frame = report.frame(name)
    apart = (frame[own] - frame[control]).groupby([frame.fact, frame.step]).mean().unstack()
    return apart[100] - (0 if start is None else apart[start])


@pytest.mark.parametrize("lost", [(3, None), (3, 17)], ids=["other counts", "other facts"])
def test_facts_are_paired_by_fact_whichever_a_run_has(reports, lost):
    pair = [
        report if fact is None else without(report, "gradient_alignment", fact)
        for report, fact in zip((reports["strong"], reports["weak"]), lost, strict=True)
    ]
    both = rcprobe.compare(dict(zip(("strong", "weak"), pair, strict=True)))
    a, b = (growth(report, "gradient_alignment", "matched", "same_target") for report in pair)
    contrast = of(both, "dynamics: cos matched −")
    assert contrast.difference.value == pytest.approx((a - b).mean())
    assert contrast.difference.n == len((a - b).dropna()) == 25 - len([fact for fact in lost if fact is not None])


def test_effect_sizes_of_runs_that_lost_one_fact_each_need_the_same_facts(reports):
    strong, weak = reports["strong"], reports["weak"]
    same = {"strong": without(strong, "storage", 3), "weak": without(weak, "storage", 3)}
    asked = rcprobe.compare(same)
    assert of(asked, "storage: growth").difference.n == 24
    unlike = rcprobe.compare({"strong": without(strong, "storage", 3), "weak": without(weak, "storage", 17)})
    (refused_one,) = [r for r in unlike.refusals if r.measure.name == "storage"]
    assert refused_one.why == "not the same facts have a value"


def test_a_fact_that_one_run_lacks_and_the_other_has_without_a_value_shifts_no_resample(reports):
    def undefined(metric, columns):
        if metric != "storage":
            return {}
        return {name: np.where(np.arange(25)[:, None, None] == 3, np.nan, c) for name, c in columns.items()}

    same = run((0,), change=undefined, names=MOST)
    both = rcprobe.compare({"strong": same, "weak": without(same, "storage", 3)})
    difference = of(both, "storage: growth").difference
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_an_undefined_p_is_not_counted_as_tested(monkeypatch):
    undefined = Difference(0.5, math.nan, math.nan, math.nan, 25, "clusters", "")
    monkeypatch.setattr(contrasts, "paired_means", lambda *_: undefined)
    found = rcprobe.compare({"strong": run(), "weak": run((1,))})
    assert {(c.found, c.why) for c in found.contrasts} == {
        ("too few", "its p is undefined: too few resamples have a value")
    }
    assert "No difference could be tested: all " in found.to_markdown()


# --- what can't be compared ---


def test_runs_of_other_facts_are_set_side_by_side_and_not_compared(found):
    assert [group.label for group in found.groups] == ["towns, 25 facts", "towns, 30 facts"]
    assert {(c.a, c.b) for c in found.contrasts} == {("strong", "weak")}
    assert "towns was asked in 2 ways" in found.to_markdown()


def why(name, a, b):
    """The reasons for which one signature of two runs isn't compared."""
    found = rcprobe.compare({"one": a, "two": b})
    assert not [c for c in found.contrasts if c.measure.name == name]
    return {r.why for r in found.refusals if r.measure.name == name}


def judged_as(verdict, reason):
    report = run((1,))
    one = replace(report.signatures["gradient_alignment"], verdict=verdict, why=reason)
    return replace(report, signatures={**report.signatures, "gradient_alignment": one})


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("identity", "true by construction: so"), ("not trained", "not trained: so"), ("undefined", "undefined: so")],
)
def test_what_is_no_evidence_in_one_run_is_not_compared(verdict, said):
    assert why("gradient_alignment", run(), judged_as(verdict, "so")) == {said}


def test_a_metric_defined_otherwise_is_not_compared():
    metric = synthetic.METRICS[2]
    other = replace(metric, conditions=(replace(metric.conditions[0], margin=0.5),))
    given = run()
    metrics = [other, synthetic.METRICS[4]]
    again = build(given.dataset, metrics, given.runs, chance=0.01, identities={}, info=given.info)
    assert why("gradient_alignment", given, again) == {"its signature was defined otherwise"}


def test_log_probabilities_of_two_kinds_are_not_compared():
    given = run(names=synthetic.METRICS[3:])
    kinds = [replace(given, info={**synthetic.INFO, "objective": o}) for o in ("masked", "causal")]
    (reason,) = why("reverse_probability", *kinds)
    assert "of a masked and of a causal model are of two kinds" in reason
    models = [replace(given, info={**synthetic.INFO, "model": name}) for name in ("x", "y")]
    (reason,) = why("reverse_probability", *models)
    assert "tokenizers" in reason


@pytest.mark.parametrize(
    ("info", "of_what"),
    [
        ({"train": {"steps": 3, "method": "lora"}}, "fresh low-rank adapters"),
        ({"loading": {"peft": "adapters"}}, "loaded low-rank adapters"),
    ],
)
def test_cosines_over_adapters_and_over_weights_are_not_compared(info, of_what):
    (reason,) = why("gradient_alignment", run(), run((1,), info=info))
    assert f"one takes gradients in the weights themselves, two in {of_what}" in reason
    old, new = run(info={"train": {"steps": 3}}), run((1,), info={"train": {"steps": 3, "method": "full"}})
    assert of(rcprobe.compare({"strong": old, "weak": new}), "dynamics: cos matched −")


def test_cosines_over_all_weights_and_over_what_a_quantised_model_has_left_are_not_compared():
    given = run((1,))
    (one,) = given.runs
    counts = {"read": {"weight": 3}, "left out": {"it is quantised": 2}, "undefined": {}}
    steps = tuple(replace(step, coverage={"same_target": counts}) for step in one.steps)
    quantised = replace(given, runs=(replace(one, steps=steps),))
    (reason,) = why("gradient_alignment", run(), quantised)
    assert "less what is left out (it is quantised)" in reason


def test_answers_of_two_decoders_are_not_compared():
    def wrote(seed, decoder):
        report = run((seed,), info={"decoding": {"decoder": decoder}})
        *before, last = report.runs[0].steps
        right = np.arange(25) % 2.0
        columns = {"forward, exact": right, "reverse, exact": right}
        named = (*last.measured, replace(last.measured[-1], metric="answers", columns=columns))
        return replace(report, runs=(replace(report.runs[0], steps=(*before, replace(last, measured=named))),))

    a, b, c = wrote(0, "confidence"), wrote(1, "confidence"), wrote(2, "random")
    assert why("answers", a, c) == {"their answers were decoded in two ways"}
    both = rcprobe.compare({"strong": a, "weak": b})
    assert of(both, "written accuracy, reverse").difference.value == 0
    assert both.matrix[0].reading == "written, exact (confidence)"


def test_a_metric_that_one_run_lacks_is_not_compared():
    without = replace(run((1,), names=synthetic.METRICS[4:]), signatures={})
    assert why("gradient_alignment", run(), without) == {"not measured"}


def test_another_version_is_said():
    old = run((1,), info={"versions": {"rcprobe": "0.0.9"}})
    assert "rcprobe isn't one version" in rcprobe.compare({"a": run(), "b": old}).to_markdown()


# --- how it is written ---


def test_the_matrix_has_a_column_a_model_and_a_line_a_dataset():
    rivers = synthetic.facts(25, _0=("Rhine", "Basel"))
    made = rcprobe.compare(
        {
            f"{model} {data}": run(given=facts, info={"model": model})
            for model in ("first", "second")
            for data, facts in (("x", synthetic.facts(25)), ("y", rivers))
        }
    )
    text = made.to_latex()
    assert "reading & pairing & first & second" in text
    lines = [line for line in text.splitlines() if "100.0 / " in line]
    assert len(lines) == 2
    assert all(line.count("100.0 / 52.0") == 2 for line in lines)


def test_models_of_one_name_are_told_apart_by_the_settings_that_differ():
    options = [{"model": "tiny", "options": {"encoding": e, "width": 16}} for e in ("rope", "alibi")]
    made = rcprobe.compare({e["options"]["encoding"][0]: run(info=e) for e in options})
    assert [one.model for one in made.runs] == ["tiny, encoding rope", "tiny, encoding alibi"]
    same = rcprobe.compare({"a": run(), "b": run((1,))})
    assert [one.model for one in same.runs] == ["made-up (a)", "made-up (b)"]


def test_panels_of_one_dataset_share_their_scale_and_runs_without_a_value_keep_their_line(found):
    layers = figures.cosines(found.groups)[0].panels
    assert [panel.title for panel in layers] == ["strong\ntowns, 25 facts", "weak\ntowns, 25 facts", layers[2].title]
    assert layers[0].limits == layers[1].limits
    shown = [value for panel in layers[:2] for s in panel.series for p in s.points for value in (p.low, p.high)]
    assert layers[0].limits[0] < min(shown) < max(shown) < layers[0].limits[1]
    without = rcprobe.compare({"a": run(), "b": run((1,), names=synthetic.METRICS[4:])})
    (panel,) = figures.signatures(without.groups).panels
    assert panel.series[0].places == ("a", "b")
    assert math.isnan(panel.series[0].points[1].value)
    assert panel.margin == 0.02


def test_on_one_dataset_every_table_calls_a_run_by_its_name(reports):
    written = rcprobe.compare({"strong": reports["strong"], "weak": reports["weak"]}).to_markdown()
    assert "| reading | pairing | strong | weak |" in written
    assert "| dataset |" not in written.partition("## Runs")[0]


def test_shares_stand_beside_their_intervals_or_above_them():
    both = (Point(1.0, 0.84, 1.0), Point(0.0))
    assert grids._cell(both, "beside") == "100.0 [84, 100] / 0.0"
    assert grids._cell(both, "below") == "100.0 / 0.0\n[84, 100] / –"
    assert grids._cell(both, "none") == "100.0 / 0.0"


@pytest.mark.parametrize("width", [40, *range(70, 121, 3), 200])
def test_no_terminal_is_so_narrow_that_words_are_broken(found, width):
    """Names, numbers and verdicts stay whole; a table that can't hold them is told row by row."""
    console = Console(file=StringIO(), width=width, highlight=False)
    print_comparison(found, console)
    printed = console.file.getvalue().split()
    made = sheet(found, "below")
    words = {
        word for grid in made.grids for row in (grid.headings, *grid.rows) for cell in row for word in cell.split()
    }
    assert {word for word in words if len(word) < 30} <= {word.strip("│┃;") for word in printed}


def test_a_cell_that_is_empty_by_itself_stays_empty_row_by_row():
    console = Console(file=StringIO(), width=20, highlight=False)
    long = "x" * 30
    rows = (("", long, ":warning:"), ("k", "[b]", "2"), ("", "3", long))
    _print_grid(Grid("t", ("a", "b", "c"), rows, once=1), console)
    printed = "".join(console.file.getvalue().split())
    assert printed == f"tb{long};c:warning:ak;b[b];c2ak;b3;c{long}"


def test_latex_breaks_long_texts_where_a_line_is_too_short():
    wide = latex_table("c", ("a", "b", "c"), [("word " * 20, "0.12", "word " * 10)], ())
    assert re.search(r"tabular\}\{>.*p\{0\.\d\d\\linewidth\}l>.*p\{0\.\d\d\\linewidth\}\}", wide)
    assert sum(map(float, re.findall(r"p\{(0\.\d\d)", wide))) < 1
    uneven = latex_table("c", ("a", "b"), [("x" * 21, "word " * 100)], ())
    assert min(map(float, re.findall(r"p\{(0\.\d\d)", uneven))) > 0.1
    assert r"\begin{tabular}{lll}" in latex_table("c", ("a", "b", "c"), [("word " * 5, "0.12", "word")], ())
    many = re.findall(r"p\{(0\.\d\d)", latex_table("c", "abcdefghij", [("0.12 to 0.34",) * 10], ()))
    assert len(many) == 10  # each is short; together they are not
    assert sum(map(float, many)) < 1
    assert "{-" not in latex_table("c", ["heading"] * 70, [["cell"] * 70], ())


def test_latex_breaks_a_table_that_is_longer_than_a_page():
    long = latex_table("c", ("a", "b"), [("1", "2")] * 51, ("said",))
    assert long.startswith("% said\n% packages: booktabs, array, longtable\n\\begingroup")
    assert long.count(r"\begin{longtable}{ll}") == long.count(r"\end{longtable}") == long.count(r"\endhead") == 1
    assert long.count(r"1 & 2 \\") == 51
    assert "longtable" not in latex_table("c", ("a", "b"), [("1", "2")] * 50, ())
    assert "longtable" in latex_table("c", ("a", "b"), [("1", "word " * 300)] * 5, ())


def test_rows_hold_every_number_once(found):
    frame = found.frame()
    assert set(frame.kind) == {"accuracy", "signature", "difference"}
    assert len(frame) == len(found.to_csv().splitlines()) - 1
    apart = frame[frame.kind == "difference"]
    assert list(apart.value) == [c.difference.value for c in found.contrasts]
    assert "nan" not in found.to_csv()
    plain = json.dumps(found.to_dict(), allow_nan=False)
    assert strict(plain)["results"][0]["kind"] == "accuracy"


def test_names_from_outside_are_escaped_everywhere(found, html):
    assert "<img" not in html
    assert "\u202e" not in html + found.to_markdown() + found.to_latex()
    assert "⟨U+202E⟩turned" in Reader(html).text
    table = found.to_latex()
    assert r"\textbackslash{}input\{y\} \& 100\%" in table
    printed = [line for line in table.splitlines() if not line.startswith("%")]
    assert r"\input" not in "\n".join(printed).replace(r"\textbackslash{}input", "")
    assert r"\<img src=x onerror=alert(1)\>\|\*\_" in found.to_markdown()
    bracket = rcprobe.compare({"[1]": run(), "b": run((1,))}).to_latex()
    assert not re.search(r"^\[", bracket, re.MULTILINE)


def test_the_page_says_what_was_found_and_fetches_nothing(html):
    read = Reader(html)
    assert "Right in reverse: strong 52% (forward 100%), weak 0% (forward 100%)." in read.text
    assert "On towns, 25 facts, strong is right in reverse more often than weak, by 52.0 points [" in read.text
    assert "they are paired" in read.text
    assert all(link.startswith(("#", "data:text/csv")) for link in read.links)
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in html
    assert "<script" not in html
    assert not re.search(r"url\((?!#)|@import|\bnan\b", html)


def test_the_page_can_be_read_aloud(html):
    read = Reader(html)
    assert len(read.ids) == len(set(read.ids))
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert read.images
    assert all("The numbers follow" in label for label in read.images)


def test_runs_without_a_finished_seed_are_shown_as_such():
    data = Dataset("towns", synthetic.facts(5))
    empty = rcprobe.compare({name: synthetic.judged(data, [], {}) for name in ("a", "b")})
    text = Reader(page(empty)).text
    assert "No two runs can be compared" in text
    assert "No finished seed answered any question." in text


# --- on the command line ---


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    accuracy = synthetic.METRICS[4:]
    synthetic.kept(run(names=accuracy), folder / "one")
    synthetic.kept(run((1,), change=weaker, names=accuracy), folder / "two")
    return folder


def test_every_format_is_written_without_the_paths_of_this_machine(kept, tmp_path):
    runs = [str(kept / name) for name in ("one", "two")]
    starts = {"md": "# Runs compared", "latex": "%", "csv": "kind,", "json": "{"}
    for kind, start in starts.items():
        done = call("compare", *runs, "--format", kind)
        assert done.code is None, done.err
        assert done.out.startswith(start)
        assert str(kept) not in done.out
    page = call("compare", *runs, "--out", str(tmp_path / "new"))
    assert (page.code, page.out, page.err) == (None, "", f"wrote {tmp_path / 'new' / 'compare.html'}\n")
    assert call("compare", *runs, "--format", "latex", "--out", str(tmp_path / "x.txt")).code is None
    html = (tmp_path / "new" / "compare.html").read_text()
    assert html.startswith("<!doctype html>")
    assert str(kept) not in html
    assert r"\toprule" in (tmp_path / "x.txt").read_text()
    table = call("compare", *runs).out
    assert "Accuracy forward / reverse" in table
    assert "Of 2 differences between two runs, 1 holds" in " ".join(table.split())


def test_half_a_character_in_a_setting_is_kept_in_json():
    found = rcprobe.compare({"one": run(), "two": run((1,), info={"revision": "half \ud800"})})
    written = _written(found, Format.JSON).encode()
    assert strict(written.decode())["runs"][1]["info"]["revision"] == "half \ud800"


def test_what_was_asked_wrongly_is_named(kept, tmp_path):
    one, two = str(kept / "one"), str(kept / "two")
    assert "takes two or more" in refused("compare", one)
    assert "no run is kept there" in refused("compare", one, str(tmp_path))
    (tmp_path / "two").symlink_to(two)
    twice = refused("compare", two, str(tmp_path / "two"))
    assert "2 runs are called 'two'" in twice
    assert str(tmp_path / "two") in twice
    assert "empty" in refused("compare", one, " ")
    assert "empty" in refused("compare", one, two, "--out", "")
    assert "--format" in refused("compare", one, two, "--out", "table.tex")
    with pytest.raises(UsageError, match="a report in memory"):
        rcprobe.compare([run(), run()])


@pytest.mark.parametrize(("file", "said"), [("done.json", "unfinished"), ("report.json", "damaged")])
def test_a_run_that_cannot_be_read_is_named_and_fails(kept, tmp_path, file, said):
    shutil.copytree(kept / "two", tmp_path / "bad")
    if said == "unfinished":
        (tmp_path / "bad" / file).unlink()
    else:
        (tmp_path / "bad" / file).write_text("{}")
    done = call("compare", str(kept / "one"), str(tmp_path / "bad"))
    assert done.code == 1
    assert said in done.err
    assert "bad" in done.err
    assert done.out == ""


# --- in a browser ---

DRIVER = """<script>
window.addEventListener("load", () => {
  const box = (e) => e.getBoundingClientRect(), said = {};
  said.wide = document.documentElement.scrollWidth > window.innerWidth;
  said.figures = [...document.querySelectorAll(".panel svg")].every((s) => box(s).width > 250 && box(s).height > 150);
  said.headline = box(document.querySelector(".lead p")).bottom < 700;
  said.fetched = performance.getEntriesByType("resource").map((e) => e.name);
  said.unnamed = [...document.querySelectorAll("a, [tabindex]")].filter(
    (e) => !(e.textContent.trim() || e.ariaLabel)).length;
  const held = document.createElement("script"); held.type = "application/json"; held.id = "said";
  held.textContent = JSON.stringify(said); document.body.append(held);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is NOT opened")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path, html, width):
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html).group()
    path = tmp_path / "driven.html"
    path.write_text(html.replace(policy, "").replace("<head>", "<head>" + DRIVER))
    dom, log = browse(path, width, tmp_path)
    said = json.loads(re.search(r'id="said">(.*?)</script>', dom, re.DOTALL).group(1))
    assert said == {"wide": False, "figures": True, "headline": True, "fetched": [], "unnamed": 0}
    assert "CONSOLE" not in log


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is NOT opened")
def test_in_a_browser_under_its_own_policy(tmp_path, html):
    path = tmp_path / "compare.html"
    path.write_text(html)
    dom, log = browse(path, 1280, tmp_path)
    assert "Differences between runs" in dom
    assert "CONSOLE" not in log
