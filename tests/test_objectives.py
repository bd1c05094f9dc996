"""Each objective against its definition written out: what may be shown, and what each token weighs on average."""

import itertools
import math

import pytest
import torch

from rcprobe import Dataset, Fact, TrainConfig, load, load_dataset
from rcprobe.config import read_config
from rcprobe.errors import UnknownNameError, UsageError, VerificationError
from rcprobe.manifest import config_of, describe
from rcprobe.metrics import resolve_metrics
from rcprobe.plugins import registry
from rcprobe.probing.verify import verify
from rcprobe.training.objectives import CART_P, LEAST_NOISE, OBJECTIVES, Statements, cart, objective_of, own_objective
from rcprobe.training.statements import forward_statements, maskable_tokens

FACTS = [Fact(c, c.upper(), ("{a}00{b}0", "0{a}{b}00"), ("0{b}00{a}", "00{b}{a}0")) for c in "ab"]
LENGTH, DRAWS = 5, 40_000
MASKED = [name for name, objective in OBJECTIVES.items() if objective.kind == "masked"]
ENTITIES = torch.tensor([True, False, False, True, False])  # a00A0
ALL = torch.ones(LENGTH, dtype=torch.bool)


def tiny(name="radd"):
    return load(name, options={"width": 8, "max_length": 8})


def drawn(name, may=ALL, count=DRAWS, seed=0):
    """What ``count`` copies of one statement are shown, and the tokens' weights times ``count``, in float64."""
    m = tiny()
    ids = torch.tensor(m.tokenizer("a00A0")["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    batch = ids.expand(count, LENGTH)
    statements = Statements(batch, ALL.expand(count, LENGTH), may.expand(count, LENGTH))
    shown, weight = OBJECTIVES[name].draw(m, statements, generator)
    return m, ids, shown, weight.double() * count


def pattern_law(name, n):
    """{set of asked tokens: (probability, weight of each)} among n maskable ones, by integrating over the rate."""
    law = {}
    for size in range(n + 1):
        for asked in itertools.combinations(range(n), size):
            if name in ("t-dce", "lambda-dce", "uniform-mlm", "cart"):
                # ∫ p^k (1 − p)^(n−k) dp over the unit interval
                probability = math.factorial(size) * math.factorial(n - size) / math.factorial(n + 1)
                weight = None
            elif name == "k-dce":
                probability = 1 / n / math.comb(n, size) if size else 0.0
                weight = n / size if size else None
            else:
                wanted = 1 if name == "single-mask" else max(1, round(0.15 * n))
                probability = 1 / math.comb(n, wanted) if size == wanted else 0.0
                weight = 1 / wanted
            law[asked] = (probability, weight)
    return law


@pytest.mark.parametrize("may", [ALL, ENTITIES])
@pytest.mark.parametrize("name", MASKED)
def test_each_set_of_tokens_is_asked_for_as_often_as_its_definition_says(name, may):
    m, _, shown, weight = drawn(name, may)
    places = may.nonzero().flatten().tolist()
    asked = shown == m.mask_id if name == "cart" else weight > 0  # a token without context is masked and doesn't count
    assert not asked[:, ~may].any()
    found = (asked[:, places] * 2 ** torch.arange(len(places))).sum(dim=1).bincount(minlength=2 ** len(places))
    for chosen, (probability, each) in pattern_law(name, len(places)).items():
        share = float(found[sum(2**place for place in chosen)]) / DRAWS
        assert share == pytest.approx(probability, abs=4.5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-3)
        if each is not None and probability and name != "uniform-mlm":
            rows = (asked[:, places] == torch.tensor([p in chosen for p in range(len(places))])).all(dim=1)
            assert weight[rows][:, places][:, list(chosen)].flatten().tolist() == pytest.approx(
                [each] * int(rows.sum()) * len(chosen), rel=1e-6
            )


@pytest.mark.parametrize("name", ["t-dce", "lambda-dce", "k-dce"])
def test_the_three_forms_of_dce_weigh_every_token_once_on_average(name):
    """Each is Σ over tokens of an unbiased −log p: their expected weights are 1, whatever the number of tokens."""
    _, _, _, weight = drawn(name, seed=2)
    error = weight.std(dim=0) / math.sqrt(DRAWS)
    assert ((weight.mean(dim=0) - 1).abs() < 4 * error + 1e-3).all()
    assert error.max() < 0.05


def test_rates_and_weights_of_t_dce_are_each_others_inverse():
    m, ids, shown, weight = drawn("t-dce", count=64)
    draws = torch.Generator().manual_seed(0)
    p = (1 - LEAST_NOISE) * torch.rand(64, 1, generator=draws) + LEAST_NOISE
    masked = torch.rand(64, LENGTH, generator=draws) < p
    assert torch.equal(shown, torch.where(masked, m.mask_id, ids.expand(64, LENGTH)))
    torch.testing.assert_close(weight, torch.where(masked, 1 / p, 0.0).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["uniform-mlm", "bert-mlm", "single-mask"])
def test_masked_lms_are_means_over_the_tokens_asked_for(name):
    _, _, _, weight = drawn(name, count=50)
    assert float(weight.sum()) / 50 == pytest.approx(1.0, rel=1e-6)
    assert len(weight[weight > 0].unique()) == 1


@pytest.mark.parametrize("name", sorted({*MASKED} - {"bert-mlm", "cart"}))
def test_what_is_asked_for_is_hidden_and_nothing_else(name):
    m, ids, shown, weight = drawn(name, count=200)
    assert torch.equal(shown == m.mask_id, weight > 0)
    assert torch.equal(shown[weight == 0], ids.expand(200, LENGTH)[weight == 0])


def test_cart_weighs_masked_tokens_by_the_shown_ones_near_them():
    """Dream's Eq. 5 as a loop in float64; padding is no context, and what may not be masked is."""
    m = tiny()
    ids = torch.randint(2, 20, (60, 8), generator=torch.Generator().manual_seed(1))
    real = torch.arange(8) < torch.tensor([8, 5, 3]).repeat(20)[:, None]
    may = real & (torch.arange(8) > 0)
    shown, weight = cart(m, Statements(ids, real, may), torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    masked = (torch.rand(60, 8, generator=draws) < torch.rand(60, 1, generator=draws)) & may
    assert torch.equal(shown, torch.where(masked, m.mask_id, ids))
    for row, of_row in enumerate(weight.double().tolist()):
        for n, found in enumerate(of_row):
            seen = [i for i in range(8) if real[row, i] and not masked[row, i]]
            expected = sum(0.5 * CART_P * (1 - CART_P) ** (abs(n - i) - 1) for i in seen) if masked[row, n] else 0.0
            assert found == pytest.approx(expected / int(masked.sum()), rel=1e-5, abs=0)


def test_cart_leaves_out_statements_that_are_shown_nothing_of():
    _, _, shown, weight = drawn("cart", count=2000)
    blank = (shown == shown[:, :1]).all(dim=1)
    assert blank.any()
    assert (weight[blank] == 0).all()
    assert torch.isfinite(weight).all()


def test_bert_shows_a_tenth_as_it_is_and_a_tenth_as_another_token():
    m, ids, shown, weight = drawn("bert-mlm")
    asked, real = weight > 0, ids.expand(DRAWS, LENGTH)
    assert torch.equal(shown[~asked], real[~asked])
    seen, true = shown[asked], real[asked]
    assert float((seen == m.mask_id).double().mean()) == pytest.approx(0.8, abs=0.01)
    others = m.vocabulary - 1
    assert float((seen == true).double().mean()) == pytest.approx(0.1 + 0.1 / others, abs=0.01)
    assert set(seen.tolist()) == set(range(m.vocabulary))


def test_only_entities_are_maskable_where_asked():
    m = tiny()
    _, real = forward_statements(m, FACTS)
    found = maskable_tokens(m, FACTS, TrainConfig(steps=1, maskable="entities"), real)
    assert found[:2].tolist() == [[True, False, False, True, False], [False, True, True, False, False]]
    assert torch.equal(maskable_tokens(m, FACTS, TrainConfig(steps=1), real), real)


def test_no_objective_named_is_the_familys_own():
    assert objective_of(tiny(), TrainConfig(steps=1)).name == "t-dce"
    assert objective_of(tiny("gpt2-mini"), TrainConfig(steps=1)).name == "next-token"
    assert objective_of(tiny(), TrainConfig(steps=1, objective="k-dce")).name == "k-dce"


def test_a_family_that_names_its_loss_is_trained_with_it_and_measured_by_it():
    assert own_objective(registry().get("models", "dream")) == "cart"
    m = tiny()
    m.adapter = m.adapter.variant({"loss": "k-dce"})()
    assert objective_of(m, TrainConfig(steps=1)).name == "k-dce"
    assert objective_of(m, TrainConfig(steps=1, objective="t-dce")).name == "t-dce"
    for config, kept in ((TrainConfig(steps=1), "k-dce"), (TrainConfig(steps=1, objective="t-dce"), "t-dce")):
        letters = load_dataset("letters", {"length": 3})
        assert config_of(m, letters, [], [0], config, 4, None, None)["train"]["objective"] == kept
    (gradient,) = resolve_metrics(["training_alignment"])
    assert describe(m, Dataset("few", tuple(FACTS)), [gradient], [0], None, 1, None)["loss"] == "k-dce"
    assert describe(m, Dataset("few", tuple(FACTS)), [], [0], None, 1, None)["loss"] is None
    m.adapter = m.adapter.variant({"loss": "cartt"})()
    with pytest.raises(VerificationError, match=r"loss is 'cartt'; use t-dce, .*cart"):
        verify(m)
    m.adapter = m.adapter.variant({"loss": "next-token"})()
    with pytest.raises(VerificationError, match="loss is 'next-token'; use t-dce"):
        verify(m)


def test_objectives_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UnknownNameError, match="did you mean 't-dce'"):
        objective_of(tiny(), TrainConfig(steps=1, objective="t_dce"))
    with pytest.raises(UsageError, match="'k-dce' is for masked models, and gpt2-mini is a causal one; use next-token"):
        objective_of(tiny("gpt2-mini"), TrainConfig(steps=1, objective="k-dce"))
    with pytest.raises(UsageError, match="masks nothing"):
        objective_of(tiny("gpt2-mini"), TrainConfig(steps=1, maskable="entities"))
    with pytest.raises(UsageError, match="use one of all, entities"):
        TrainConfig(steps=1, maskable="letters")


def test_every_objective_names_its_source():
    for objective in OBJECTIVES.values():
        assert "et al., 20" in objective.draw.__doc__ or "§3" in objective.draw.__doc__


def test_a_run_records_the_objective_it_was_trained_with(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[train]\nsteps = 2\nobjective = "k-dce"\nmaskable = "entities"\n')
    named = read_config(file).training()
    assert (named.objective, named.maskable) == ("k-dce", "entities")
    for config, wanted in ((named, "k-dce"), (TrainConfig(steps=2), "t-dce")):
        assert describe(tiny(), Dataset("few", tuple(FACTS)), [], [0], config, 1, None)["train"]["objective"] == wanted
