"""What notebooks show of pairs, observations and reports: well-formed, escaped, without scripts, and true."""

import re
import string
from xml.etree import ElementTree

import pytest
import torch

import rcprobe

EVIL = "Peru<script>alert('1')</script>\u202e"
CAPITALS = {"Oslo": "Norway", "Lima": EVIL}
FACTS = [
    rcprobe.Fact(a, b, forward="{a} is the capital of {b}.", reverse="{b}'s capital is {a}.")
    for a, b in CAPITALS.items()
]


@pytest.fixture(scope="module")
def masked():
    return rcprobe.load("radd", options={"alphabet": string.printable + "\u202e", "width": 8, "heads": 2})


@pytest.fixture(scope="module")
def causal():
    return rcprobe.load("gpt2-mini", options={"alphabet": string.printable + "\u202e", "width": 8})


@pytest.fixture(scope="module")
def seen(masked):
    return rcprobe.observe(masked, rcprobe.encode(masked, FACTS), read={"scores", "log_probs", "gradients", "storage"})


def drawn(thing):
    """The elements of what is shown; it must be well-formed, run nothing and fetch nothing."""
    html = thing._repr_html_()
    assert not re.search(r"<script|\son\w+=|https?:|url\(", html)
    return ElementTree.fromstring(html)


def marked(root, title):
    """Texts of the elements whose title says so, by row of the pair's table."""
    return ["".join(e.text for e in row.iter("span") if title in e.get("title", "")) for row in root.iter("tr")][1:]


def test_a_pair_shows_masks_and_evidence_in_their_places(masked):
    pair, _ = rcprobe.encode(masked, FACTS)
    root = drawn(pair)
    assert marked(root, ": evidence") == ["Norway", "Norway"]
    assert marked(root, "asked for Oslo") == ["mask" * 4, "mask" * 4]
    forward, reverse = ("".join(row.iter("td").__next__().itertext()) for row in list(root.iter("tr"))[1:])
    assert (forward, reverse) == ("forward", "reverse")
    tokens = ["".join(list(row.iter("td"))[1].itertext()) for row in list(root.iter("tr"))[1:]]
    assert tokens == ["mask" * 4 + " is the capital of Norway.", "Norway's capital is " + "mask" * 4 + "."]
    assert "distances δ→ 23, δ← 20" in "".join(root.itertext())


def test_a_causal_pair_ends_where_it_is_asked(causal):
    pair = rcprobe.encode(causal, FACTS, "swapped")[0]
    tokens = ["".join(list(row.iter("td"))[1].itertext()) for row in list(drawn(pair).iter("tr"))[1:]]
    assert tokens == ["Oslo is the capital of Norwa?", "Norway's capital is Osl?"]
    assert marked(drawn(pair), "asked for") == ["?", "?"]


def test_a_pair_that_cannot_be_asked_says_why(causal):
    pair = rcprobe.encode(causal, FACTS)[0]
    assert "can't be asked: " in "".join(drawn(pair).itertext())


def test_texts_from_outside_stay_texts(masked, seen):
    for thing in (rcprobe.encode(masked, FACTS)[1], seen):
        text = "".join(drawn(thing).itertext())
        assert "<script>alert('1')</script>⟨U+202E⟩" in text
        assert "\u202e" not in text


def test_special_tokens_are_shown_by_their_names(masked):
    from transformers import PreTrainedTokenizerFast

    backend = masked.tokenizer.backend_tokenizer.from_str(masked.tokenizer.backend_tokenizer.to_str())
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="x $A", special_tokens=[("x", 1)])
    m = rcprobe.LoadedModel(masked.model, masked.adapter, PreTrainedTokenizerFast(tokenizer_object=backend), "with bos")
    (query, *_) = (pair.forward for pair in rcprobe.encode(m, FACTS))
    assert query.tokens[0] == backend.id_to_token(1)
    assert query.tokens[1:5] == (None,) * 4


def test_an_observation_names_its_dimensions(seen):
    root = drawn(seen)
    rows = {
        cells[0]: cells[1:]
        for cells in (["".join(c.itertext()) for c in r.iter("td")] for r in root.iter("tr"))
        if cells
    }
    assert rows["scores"][:2] == ["2 pairs × 2 (forward, reverse) × 1 layers × 2 heads", "8 of 8"]
    assert rows["storage"][0] == "2 pairs × 1 layers × 2 heads"
    assert rows["gradients.cosine()"][0] == "2 pairs"
    assert rows["log_probs"][2] == f"{float(seen.log_probs.mean()):.3g}".replace("-", "−")


def test_an_observation_draws_pairs_with_the_scores_between_mask_and_evidence(seen):
    text = "".join(drawn(seen).itertext())
    for way in (0, 1):
        score, weight = float(seen.scores[0, way, 0, 1]), float(seen.log_weights[0, way, 0, 1].exp())
        assert f"layer 0 head 1: {score:.2f} ({weight:.0%})".replace("-", "−") in text
    assert "mask" * 4 + " is the capital of Norway." in text


def test_of_many_pairs_and_heads_a_few_are_drawn(masked):
    letters = rcprobe.load_dataset("letters", {"length": 4})
    m = rcprobe.load("radd", options={"width": 8, "heads": 4, "depth": 3})
    many = rcprobe.observe(m, rcprobe.encode(m, letters.facts), read={"scores"})
    text = "".join(drawn(many).itertext())
    assert "… 153 more pairs" in text
    assert "… 4 more" in text
    assert text.count("layer 0 head 0") == 6


def test_what_is_undefined_is_a_dash(causal):
    seen = rcprobe.observe(causal, rcprobe.encode(causal, FACTS), read={"scores", "log_probs"})
    text = "".join(drawn(seen).itertext())
    assert "2 query pairs, 2 without numbers" in text
    assert "0 of 4–––" in text
    alone = rcprobe.Observation((), {}, log_probs=torch.empty(0, 2, dtype=torch.float64))
    assert "0 of 0" in "".join(drawn(alone).itertext())


def test_a_report_shows_accuracy_and_every_verdict():
    letters = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
    m = rcprobe.load("radd", options={"width": 8})
    report = rcprobe.run(m, letters, progress=False)
    text = "".join(drawn(report).itertext())
    assert "radd on letters: 3 facts, 1 seed, as it is" in text
    for signature in report.signatures.values():
        assert signature.title in text
        assert signature.why in text
    assert "52 letters" in text
