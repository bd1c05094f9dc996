"""Real models, where `make weights` has put them: they know what they should, and are read like any other."""

import pytest
import torch
import weights

import rcprobe
from rcprobe.errors import AdapterError
from rcprobe.probing.verify import verify, verify_shift
from rcprobe_plugins.models.a2d import convert
from rcprobe_plugins.models.masked_lm import MaskedLm

pytestmark = [
    pytest.mark.skipif(not weights.there(), reason=weights.MISSING),
    pytest.mark.xdist_group("real weights"),
]

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Egypt": "Cairo", "Peru": "Lima"}
ASKED = ("The capital of {a} is {b}", "{b} is the capital city of {a}")
FACTS = [rcprobe.Fact(country, city, *ASKED) for country, city in CAPITALS.items()]
ANTIBODY = "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAA"
CHAIN = ("S V K V S C {a} A S G {b} T F", "S V K V S C {b} A S G {a} T F")
RESIDUES = [rcprobe.Fact(a, b, *CHAIN) for a, b in zip("KRQEYW", "FLIVMT", strict=True)]


class AntiBerty(MaskedLm):
    """A BERT with two more heads, which tell species and chain, and one for grafts."""

    unused = (*MaskedLm.unused, r"^cls\.(species|chain|graft)\.")


@pytest.fixture(scope="module")
def smollm2():
    return rcprobe.load(weights.SMOLLM2)


@pytest.fixture(scope="module")
def antiberty():
    return rcprobe.load(weights.ANTIBERTY, adapter=AntiBerty, allow_pickle=True)


def test_the_causal_model_knows_capitals_forward(smollm2):
    assert (smollm2.adapter.name, len(smollm2.model.model.layers)) == ("llama", 30)
    assert all(check.passed for check in verify(smollm2) if check.name != "mask")
    pairs = rcprobe.encode(smollm2, FACTS, "swapped")
    found = rcprobe.observe(smollm2, pairs, read={"log_probs"})
    right = found.readings["full vocabulary"][1]
    assert right[:, 0].mean() >= 4 / 6
    assert found.log_probs[0, 0].exp() > 0.5  # Paris
    assert verify_shift(smollm2, [pair.forward for pair in pairs]).passed is True


def test_every_signature_of_the_causal_model(smollm2):
    report = rcprobe.run(smollm2, FACTS, progress=False)
    read = report.frame("gradient_alignment")
    assert read[read["pairing"] == "swapped"]["matched"].between(-1, 1).all()
    assert report.frame("storage")["stored"].notna().all()
    for name in ("attention_correlation", "gradient_alignment"):
        assert "a causal model can't see evidence that stands after its target" in report.signatures[name].why
    assert report.signatures["reverse_probability"].pairing == "swapped"


def test_a_conversion_of_the_causal_model_is_asked_both_ways(smollm2):
    made = convert(smollm2)
    assert (made.adapter.objective, made.adapter.attention) == ("masked", "full")
    pairs = rcprobe.encode(made, FACTS[:2])
    found = rcprobe.observe(made, pairs, read={"scores", "log_probs"})
    assert found.scores.shape == (2, 2, 30, 9)
    assert found.attendable.all()
    assert found.log_probs.isfinite().all()


def test_pickled_weights_are_read_where_allowed():
    with pytest.raises(AdapterError, match=r"only pytorch_model\.bin: .*--allow-pickle"):
        rcprobe.load(weights.ANTIBERTY, adapter=AntiBerty)


def test_the_masked_model_restores_residues(antiberty):
    ids = torch.tensor([antiberty.tokenizer(" ".join(ANTIBODY)).input_ids])
    places = torch.arange(1, ids.shape[1] - 1, 4)
    asked = ids.repeat(len(places), 1)
    asked[torch.arange(len(places)), places] = antiberty.mask_id
    with torch.no_grad():
        answers = antiberty.model(asked).logits[torch.arange(len(places)), places].argmax(-1)
    assert (answers == ids[0, places]).float().mean() > 0.85


def test_every_signature_of_the_masked_model(antiberty):
    report = rcprobe.run(antiberty, RESIDUES, progress=False)
    for name in ("gradient_alignment", "attention_correlation", "reverse_probability"):
        assert report.frame(name)["a"].nunique() == len(RESIDUES), name
    pairs = rcprobe.encode(antiberty, RESIDUES)
    found = rcprobe.observe(antiberty, pairs, read={"scores", "gradients"}, controls=1)
    assert found.scores.shape == (6, 2, 8, 8)
    assert found.scores.isfinite().all()
    assert found.gradients.cosine().abs().max() <= 1
    assert {part.group for part in found.gradients.parts} >= {"query", "key", "value", "mlp", "embedding", "head"}
    assert report.signatures["storage"].why == "adapter 'masked_lm' declares no ov_circuit"
