import math
from dataclasses import replace

import numpy as np
import pytest

from rcprobe.errors import PluginError
from rcprobe.measured import Measured, PairTable
from rcprobe.metrics import Condition, Metric
from rcprobe.signatures import find, judge_all

FACTS, TEMPLATES = 40, 3


def table(trained=None):
    fact, template = np.divmod(np.arange(FACTS * TEMPLATES), TEMPLATES)
    keep = np.ones(len(fact), dtype=bool) if trained is None else trained[fact]
    return PairTable(fact, template, fact, template, template + 1, template + 1, keep)


def measured(seed, step, columns, where=None):
    return Measured("metric", "same_target", seed, step, columns, where or table())


def metric(*conditions):
    return Metric("metric", frozenset(), ("same_target",), lambda seen: {}, conditions, "a title")


def judged(found, replicate="fact", name="metric", **others):
    settings = {"replicate": replicate, "identities": {}, "not_trained": {}, "skipped": {}, **others}
    conditions = tuple(f.condition for f in found)
    return judge_all({name: (metric(*conditions), "same_target", found)}, **settings)[name]


MEAN = Condition("x over control", "mean", ("x", "control"), 0.02, "cosine")
GROWTH = Condition("growth", "mean", ("x", "control"), 0.1, "nats", growth=True)
SIZE = Condition("size", "effect_size", ("x",), 0.2, "d_z")
SCORES = Condition("r", "correlation", ("forward", "reverse"), 0.1, "r")


def noise(seed, shift=0.0, shape=(FACTS * TEMPLATES,)):
    return np.random.default_rng(seed).normal(shift, 0.1, shape)


OPEN = ("inconclusive", "x over control: [−0.01, 0.04] holds the margin 0.02")


@pytest.mark.parametrize(("shift", "verdict"), [(0.5, ("present", "")), (-0.5, ("absent", "")), (0.02, OPEN)])
def test_a_mean_over_facts_is_judged_by_its_interval(shift, verdict):
    last = [measured(0, 1, {"x": noise(1, shift), "control": noise(2)})]
    (finding,) = find(metric(MEAN), last, last, "fact")
    per_fact = (last[0].columns["x"] - last[0].columns["control"]).reshape(FACTS, TEMPLATES).mean(1)
    assert finding.estimate.value == pytest.approx(per_fact.mean())
    assert finding.estimate.n == FACTS
    assert finding.control == pytest.approx(last[0].columns["control"].mean())
    signature = judged((finding,))
    assert (signature.verdict, signature.why) == verdict


def test_growth_counts_from_the_first_step_and_is_undefined_without_one():
    first = [measured(0, 0, {"x": noise(1), "control": noise(2)})]
    last = [measured(0, 9, {"x": first[0].columns["x"] + 1.0, "control": first[0].columns["control"] + 0.25})]
    (finding,) = find(metric(GROWTH), last, first, "fact")
    assert finding.estimate.value == pytest.approx(0.75)
    assert judged((finding,)).verdict == "present"
    (nothing,) = find(metric(GROWTH), first, first, "fact")
    assert math.isnan(nothing.estimate.value)
    assert judged((nothing,)).verdict == "undefined"


def test_over_seeds_the_seed_is_the_replicate():
    runs = [measured(s, 1, {"x": noise(s, 0.3)}) for s in range(6)]
    (finding,) = find(metric(SIZE), runs, runs, "seed")
    assert (finding.estimate.n, finding.estimate.unit) == (6, "seeds")
    assert judged((finding,), "seed").verdict == "present"
    (few,) = find(metric(SIZE), runs[:4], runs[:4], "seed")
    signature = judged((few,), "seed")
    assert (signature.verdict, signature.why) == ("undefined", "4 seeds; a verdict needs 5")
    (one,) = find(metric(SIZE), runs[:1], runs[:1], "seed")
    assert judged((one,), "seed").why == "1 seed; a verdict needs 5"
    flat = [measured(0, 1, {"x": np.zeros(FACTS * TEMPLATES)})]  # no spread, no effect size
    (none,) = find(metric(SIZE), flat, flat, "seed")
    assert judged((none,), "seed").why == "no seed has a value; a verdict needs 5"


def test_correlation_is_inside_strata_and_against_shuffled_facts():
    content = np.random.default_rng(0).normal(size=(FACTS, 1))
    offset = 10.0 * np.arange(TEMPLATES)  # a template's own level is no correlation over facts
    alike = (content + offset).reshape(-1, 1, 1) + noise(1, shape=(FACTS * TEMPLATES, 1, 1))
    twin = (content - offset).reshape(-1, 1, 1) + noise(2, shape=(FACTS * TEMPLATES, 1, 1))
    last = [measured(0, 1, {"forward": alike, "reverse": twin})]
    (finding,) = find(metric(SCORES), last, last, "fact")
    assert finding.estimate.value > 0.9
    assert abs(finding.control) < 0.15
    assert finding.permutation_p < 0.01
    assert judged((finding,)).verdict == "present"
    other = noise(3, shape=(FACTS * TEMPLATES, 1, 1)) - offset.repeat(FACTS).reshape(-1, 1, 1)
    last = [measured(0, 1, {"forward": alike, "reverse": other})]
    (finding,) = find(metric(SCORES), last, last, "fact")
    assert judged((finding,)).verdict != "present"


def test_held_out_facts_do_not_count():
    trained = np.arange(FACTS) < 30
    x = np.where(np.repeat(trained, TEMPLATES), 1.0, -100.0) + noise(1)
    last = [measured(0, 1, {"x": x, "control": noise(2)}, table(trained))]
    (finding,) = find(metric(MEAN), last, last, "fact")
    assert finding.estimate.n == 30
    assert finding.estimate.value == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("replicate", ["fact", "seed"])
def test_held_out_facts_alone_leave_every_signature_undefined(replicate):
    scores = {name: noise(3)[:, None, None] for name in ("forward", "reverse")}
    columns = {"x": noise(1), "control": noise(2), **scores}
    last = [measured(seed, 1, columns, table(np.zeros(FACTS, dtype=bool))) for seed in range(5)]
    for condition in (MEAN, SIZE, SCORES):
        found = find(metric(condition), last, last, replicate)
        signature = judged(found, replicate)
        assert signature.verdict == "undefined"
        assert signature.why
        assert math.isnan(found[0].estimate.value)


def test_the_weakest_seeds_permutation_test_counts():
    content = np.random.default_rng(0).normal(size=(FACTS, 1))
    alike = [
        (content + np.zeros(TEMPLATES)).reshape(-1, 1, 1) + noise(s, shape=(FACTS * TEMPLATES, 1, 1)) for s in (1, 2)
    ]
    apart = [noise(s, shape=(FACTS * TEMPLATES, 1, 1)) for s in (3, 4)]
    runs = [measured(s, 1, {"forward": a, "reverse": b}) for s, (a, b) in enumerate((alike, apart))]
    (found,), (turned,) = (find(metric(SCORES), last, last, "fact") for last in (runs, runs[::-1]))
    assert found.estimate.p > 0.05
    assert turned.estimate.p > 0.05


def test_too_many_undefined_pairs_give_no_verdict():
    x = noise(1, 0.5)
    x[: len(x) // 4] = np.nan
    last = [measured(0, 1, {"x": x, "control": noise(2)})]
    (finding,) = find(metric(MEAN), last, last, "fact")
    signature = judged((finding,))
    assert signature.verdict == "undefined"
    assert "20%" in signature.why


def test_a_correlation_among_too_few_alike_facts_says_so():
    where = replace(table(), stratum=np.arange(FACTS * TEMPLATES))  # no two are asked alike
    last = [measured(0, 1, {"forward": noise(1)[:, None, None], "reverse": noise(2)[:, None, None]}, where)]
    signature = judged(find(metric(SCORES), last, last, "fact"))
    assert (signature.verdict, signature.findings[0].estimate.n) == ("undefined", FACTS)
    assert (
        signature.why
        == "r: no interval, too few facts are asked alike (wording, distances, tokens), or all score alike"
    )


def test_what_goes_before_the_numbers():
    last = [measured(0, 1, {"x": noise(1, 0.5), "control": noise(2)})]
    found = find(metric(MEAN), last, last, "fact")
    assert judged(found, identities={"metric": "by construction"}).verdict == "identity"
    assert judged(found, name="metric (swapped)", identities={"metric": "by construction"}).verdict == "present"
    assert judged(found, not_trained={"same_target": "too low", "swapped": ""}).verdict == "not trained"
    assert judged(found, skipped={"metric": "no layers"}).why == "no layers"


def test_all_conditions_must_hold():
    last = [measured(0, 1, {"x": noise(1, 0.5), "control": noise(2, 0.5)})]
    found = find(metric(SIZE, MEAN), last, last, "fact")
    assert found[0].estimate.low > SIZE.margin
    assert judged(found).verdict != "present"


def test_where_every_interval_is_clear_of_its_margin_the_p_left_it_open():
    last = [measured(0, 1, {"x": noise(1, 0.5), "control": noise(2)})]
    (finding,) = find(metric(MEAN), last, last, "fact")
    found = judged((replace(finding, estimate=replace(finding.estimate, p=0.07)),))
    assert (found.verdict, found.why) == ("inconclusive", "p is 0.07")


def test_a_metric_with_nothing_to_judge_is_refused():
    with pytest.raises(PluginError, match="none of its conditions is judged"):
        Metric("m", frozenset(), ("swapped",), dict, (Condition("c", "mean", ("x",), 0.0, "u", judged=False),))


def test_a_pair_without_a_control_has_no_part_in_either_side():
    """Else a fact's value and its control would be means over unlike pairs."""
    control = noise(2, 1.0)
    values = control.copy()
    values[::TEMPLATES] += 5.0  # the first template is easier, and lacks its control in every tenth fact
    control[::TEMPLATES] += 5.0
    control[: 10 * TEMPLATES : TEMPLATES] = np.nan
    last = [measured(0, 1, {"x": values, "control": control})]
    (finding,) = find(metric(MEAN), last, last, "fact")
    assert finding.estimate.value == pytest.approx(0.0, abs=1e-12)
    assert finding.matched == pytest.approx(finding.control)
