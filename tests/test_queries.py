from functools import cache
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import rcprobe
from rcprobe.adapter import Adapter
from rcprobe.controls import other_targets
from rcprobe.errors import DataError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.manifest import _tokenizer
from rcprobe.queries import encode, with_target
from rcprobe_plugins.datasets.characters import character_tokenizer
from rcprobe_plugins.datasets.letters import letters


class Masked(Adapter):
    name, objective, attention = "masked", "masked", "full"


class Shifted(Masked):
    shift = 1


class Causal(Adapter):
    name, objective, attention, shift = "causal", "causal", "causal", 1


class Nothing(nn.Module):
    """`encode` asks the model for its longest prompt and its vocabulary, and nothing else."""

    def __init__(self, max_length):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=max_length)
        self.embedding = nn.Embedding(1000, 1)

    def get_input_embeddings(self):
        return self.embedding


def using(tokenizer, adapter=Masked, max_length=64):
    return LoadedModel(Nothing(max_length), adapter(), tokenizer, "a test")


def characters(adapter=Masked, max_length=64):
    alphabet = "0abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ."
    return using(character_tokenizer(alphabet, mask=adapter is not Causal), adapter, max_length)


@cache
def byte_level(trim_offsets):
    """BPE over bytes, as GPT-2's: a word's token holds the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "Paris is the capital of France. The capital of Germany is Berlin. Berlin and Paris, of France."
    tokenizer.train_from_iterator([text] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", mask_token="<mask>")


def word_piece():
    """BERT's: lower-cases, strips accents, adds [CLS] and [SEP], cuts words into pieces."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] ann ##a bob is child of ' s . who"
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words.split())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]", pad_token="[PAD]"
    )


def words(text, pattern=r"\S+|\s+"):
    """One token for every match of a pattern in the text."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    found = dict.fromkeys(piece for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate(["[MASK]", "[UNK]", *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]")


def one(m, fact, pairing="same_target"):
    (pair,) = encode(m, [fact], pairing)
    return pair


def shown(m, query):
    """What the prompt reads as, token by token."""
    return m.tokenizer.convert_ids_to_tokens(list(query.input_ids))


# --- where target, evidence and rows stand ---


def test_a_masked_model_is_asked_by_masks():
    m = characters()
    pair = one(m, Fact("ab", "C", "0{a}.{b}0", "{b}. {a}"))
    assert pair.pairing == "same_target"
    forward, reverse = pair.forward, pair.reverse
    assert shown(m, forward) == ["0", "[MASK]", "[MASK]", ".", "C", "0"]
    assert shown(m, reverse) == ["C", ".", " ", "[MASK]", "[MASK]"]
    for query in (forward, reverse):
        assert m.tokenizer.convert_ids_to_tokens(list(query.target_ids)) == ["a", "b"]
        assert (query.target, query.evidence) == ("ab", "C")
        assert query.unsupported is None
    assert (forward.rows, forward.evidence_positions, forward.offset) == ((1, 2), (4,), 3)
    assert (reverse.rows, reverse.evidence_positions, reverse.offset) == ((3, 4), (0,), -3)
    assert (forward.direction, forward.text) == ("forward", "0ab.C0")
    assert (reverse.direction, reverse.text) == ("reverse", "C. ab")
    assert pair.distances == (3, 3)


def test_swapped_asks_for_the_second_entity():
    m = characters()
    pair = one(m, Fact("a", "BC", "{a}0{b}0", "{b} {a}"), "swapped")
    assert shown(m, pair.forward) == ["a", "0", "[MASK]", "[MASK]", "0"]
    assert (pair.forward.target, pair.forward.evidence) == ("BC", "a")
    assert (pair.forward.rows, pair.forward.evidence_positions) == ((2, 3), (0,))
    assert shown(m, pair.reverse) == ["B", "C", " ", "[MASK]"]
    assert (pair.reverse.target, pair.reverse.evidence) == ("a", "BC")
    assert (pair.reverse.rows, pair.reverse.evidence_positions) == ((3,), (0, 1))


def test_a_causal_model_is_asked_by_its_left_context():
    m = characters(Causal)
    pair = one(m, Fact("ab", "CDE", "0{a}.{b}00", "{b}. {a}."), "swapped")
    # all target tokens but the last are forced; nothing after the target is read
    assert shown(m, pair.forward) == list("0ab.CD")
    assert pair.forward.rows == (3, 4, 5)
    assert pair.forward.evidence_positions == (1, 2)
    assert m.tokenizer.convert_ids_to_tokens(list(pair.forward.target_ids)) == list("CDE")
    assert shown(m, pair.reverse) == list("CDE. a")
    assert (pair.reverse.rows, pair.reverse.evidence_positions) == ((4, 5), (0, 1, 2))
    assert pair.forward.offset == -2


def test_a_causal_model_cannot_look_ahead():
    pair = one(characters(Causal), Fact("a", "B", "0{a}0{b}", "{b}0{a}"))
    assert pair.unsupported == "forward query, a causal model can't see evidence that stands after its target"
    assert (pair.forward.input_ids, pair.forward.rows, pair.forward.evidence_positions) == ((), (), ())
    assert pair.forward.text == "0a0B"
    assert pair.reverse.unsupported is None
    assert pair.reverse.rows == (1,)


def test_a_shifted_masked_model_is_read_one_row_earlier():
    m = characters(Shifted)
    fact = Fact("ab", "C", "0{a}0{b}", "{b}0{a}")
    pair = one(m, fact)
    assert shown(m, pair.forward) == ["0", "[MASK]", "[MASK]", "0", "C"]
    assert (pair.forward.rows, pair.forward.row, pair.forward.offset) == ((0, 1), 0, 4)
    assert (pair.reverse.rows, pair.reverse.offset) == ((1, 2), -1)
    assert pair.distances == (4, 1)
    assert one(characters(), fact).distances == (3, 2)


def test_what_a_shift_rules_out():
    pair = one(characters(Shifted), Fact("a", "BC", "{a}0{b}", "{b}{a}"))
    assert pair.forward.unsupported == "the target starts at a position that no logits predict"
    assert pair.reverse.unsupported == "the row that predicts the target lies inside the evidence"
    # a causal model is always asked at the token before, be it evidence
    assert one(characters(Causal), Fact("a", "BC", "{a}0{b}", "{b}{a}"), "swapped").unsupported is None


def test_letters_rows_and_distances_are_the_places():
    m = characters()
    dataset = letters(length=4)
    pairs = encode(m, dataset.facts)
    assert len(pairs) == 26 * 6
    for pair in pairs:
        fact = dataset.facts[pair.fact]
        text, (a, _), (b, _) = fact.statement("forward", pair.template)
        assert (pair.forward.rows, pair.forward.evidence_positions) == ((a,), (b,))
        assert text[a] == fact.a
        assert pair.distances == (b - a, b - a)
        assert pair.reverse.rows == (3 - a,)


# --- which pairs there are ---


def test_there_is_a_pair_for_each_template_of_each_fact():
    facts = [
        Fact("a", "B", ("{a}0{b}", "{a}00{b}"), ("{b}0{a}", "{b}00{a}"), trained=False),
        Fact("c", "D", "{a}{b}", "{b}{a}"),
        Fact("e", "B", "{a}{b}", "{b}{a}"),
    ]
    pairs = encode(characters(), facts)
    assert [(p.fact, p.template, p.cluster, p.trained) for p in pairs] == [
        (0, 0, 0, False),
        (0, 1, 0, False),
        (1, 0, 1, True),
        (2, 0, 0, True),
    ]
    assert [p.distances for p in pairs] == [(2, 2), (3, 3), (1, 1), (1, 1)]


def test_what_encode_refuses():
    m = characters()
    fact = Fact("a", "B", "{a}{b}", "{b}{a}")
    with pytest.raises(DataError, match="'mirrored'; use 'same_target' or 'swapped'"):
        encode(m, [fact], "mirrored")
    with pytest.raises(DataError, match="no facts"):
        encode(m, [])
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(DataError, match=r"fast tokenizer .* got SimpleNamespace"):
        encode(using(slow), [fact])


# --- spans in tokens ---


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_byte_level_tokens_that_hold_the_space_before(trim_offsets):
    m = using(byte_level(trim_offsets))
    pair = one(m, Fact("Paris", "France", "{a} is the capital of {b}.", "The capital of {b} is {a}."))
    assert shown(m, pair.forward) == ["<mask>", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "."]
    assert shown(m, pair.reverse) == ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis", "<mask>", "."]
    assert (pair.forward.rows, pair.forward.evidence_positions) == ((0,), (5,))
    assert (pair.reverse.rows, pair.reverse.evidence_positions) == ((5,), (3,))
    target = [m.tokenizer.convert_ids_to_tokens(list(q.target_ids)) for q in (pair.forward, pair.reverse)]
    assert target == [["Paris"], ["ĠParis"]]  # not one token, so a search for ids would miss one of them


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_byte_level_tokens_of_letters_that_take_several_bytes(trim_offsets):
    m = using(byte_level(trim_offsets))
    pair = one(m, Fact("Tromsø", "日本", "So {a} is of {b}.", "{b}, {a}"))
    for query in (pair.forward, pair.reverse):
        prompt = list(query.input_ids)
        for row, target in zip(query.rows, query.target_ids, strict=True):
            assert prompt[row] == m.mask_id
            prompt[row] = target
        assert m.tokenizer.decode(prompt) == query.text
        assert m.tokenizer.decode([prompt[i] for i in query.evidence_positions]).strip() == "日本"
        assert m.tokenizer.decode(list(query.target_ids)).strip() == "Tromsø"


def test_word_pieces_of_a_lower_casing_tokenizer():
    m = using(word_piece())
    pair = one(m, Fact("ANNA", "Bób", "{a}'s  child is {b}.", "{b} is child of {a}"))
    assert shown(m, pair.forward) == ["[CLS]", "[MASK]", "[MASK]", "'", "s", "child", "is", "bob", ".", "[SEP]"]
    assert m.tokenizer.convert_ids_to_tokens(list(pair.forward.target_ids)) == ["ann", "##a"]
    assert (pair.forward.rows, pair.forward.evidence_positions) == ((1, 2), (7,))
    assert (pair.reverse.rows, pair.reverse.evidence_positions) == ((5, 6), (1,))


def test_an_entity_that_occurs_twice_is_asked_where_its_slot_stands():
    m = characters()
    pair = one(m, Fact("ab", "C", "ab C ab {a} C {b} ab C", "abC {b}ab {a}ab"))
    assert pair.forward.text == "ab C ab ab C C ab C"
    assert pair.forward.rows == (8, 9)
    assert pair.forward.evidence_positions == (13,)
    assert shown(m, pair.forward) == [*"ab C ab ", "[MASK]", "[MASK]", *" C C ab C"]
    assert pair.reverse.text == "abC Cab abab"
    assert pair.reverse.rows == (8, 9)
    assert pair.reverse.evidence_positions == (4,)


def test_an_entity_may_hold_white_space():
    m = using(words("Ann Lee is of Bob", r"\S+|\s"))
    pair = one(m, Fact("Ann Lee", "Bob", "{a} is of {b}", "{b} is of {a}"))
    assert pair.forward.rows == (0, 1, 2)  # Ann, the space, Lee
    assert pair.forward.evidence_positions == (8,)
    assert pair.reverse.rows == (6, 7, 8)


def test_a_token_that_crosses_the_border_of_an_entity():
    m = using(words("Ann's child is Bob."))
    pair = one(m, Fact("Ann", "Bob", "{a}'s child is {b}.", "{b}. {a}"))
    assert pair.forward.unsupported == "the token \"Ann's\" crosses the border of the target 'Ann'"
    assert pair.unsupported == "forward query, " + pair.forward.unsupported
    swapped = one(m, Fact("child", "Bob", "{a} is {b}.", "{b} is {a}"), "swapped")
    assert swapped.forward.unsupported == "the token 'Bob.' crosses the border of the target 'Bob'"
    evidence = one(m, Fact("child", "Bob", "{a} is {b}.", "{b} is {a}"))
    assert evidence.forward.unsupported == "the token 'Bob.' crosses the border of the evidence 'Bob'"
    assert evidence.forward.input_ids == ()


def test_target_and_evidence_may_not_share_a_token():
    m = using(words("a  b", r"\w+|\s+"))
    pair = one(m, Fact("a ", " b", "{a}{b}", "{b}.{a}"))
    assert pair.forward.text == "a  b"
    assert pair.forward.unsupported == "target and evidence share a token"


def test_an_entity_that_leaves_no_token():
    tokenizer = word_piece()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("who", ""), normalizers.BertNormalizer(lowercase=True)]
    )
    pair = one(using(tokenizer), Fact("who", "Bob", "{a} is child of {b}", "{b} is {a}"))
    assert pair.forward.unsupported == "the target 'who' can't be located in the tokens"


def test_what_the_tokenizer_does_not_know():
    pair = one(characters(), Fact("é", "B", "{a}0{b}", "{b}0{a}"))
    assert pair.forward.unsupported.startswith("the tokenizer can't read it: ")
    m = using(word_piece())
    for a, b in (("Zoe", "Bob"), ("Bob", "Zoe")):
        pair = one(m, Fact(a, b, "{a} is child of {b}", "{b} is {a}"))
        for query in (pair.forward, pair.reverse):
            assert query.unsupported == "the tokenizer doesn't know a part of the target or evidence"
    context = one(m, Fact("Anna", "Bob", "{a} knows {b}", "{b} knows {a}"))
    assert context.unsupported is None  # an unknown word elsewhere does no harm
    assert "[UNK]" in shown(m, context.forward)


def test_an_alphabet_larger_than_the_vocabulary():
    """The model knows 0abAB and its mask; to the tokenizer the mask's id is a letter."""
    small = rcprobe.load("radd", options={"alphabet": "0abAB"})
    m = using(characters().tokenizer)
    m.model.embedding = small.model.embed_tokens
    pair = one(m, Fact("a", "B", "0{a}0{b}", "0{b}0{a}"))
    assert "gives 'B' the id 28, and the model's vocabulary is 6; use the tokenizer that" in pair.unsupported
    m = rcprobe.load("radd", options={"alphabet": "0abAB"}, tokenizer=character_tokenizer("0abABC", mask=False))
    held = one(m, Fact("a", "b", "{a}C{b}", "{b}0{a}"))
    assert held.forward.unsupported.startswith("the text holds 'C', whose id 5 is the model's mask; use the tokenizer")
    assert held.reverse.unsupported is None


def test_a_text_may_hold_a_mask_on_purpose():
    m = characters()
    pair = one(m, Fact("a", "B", "{a}" + m.tokenizer.mask_token + "{b}", "{b}0{a}"))
    assert pair.unsupported is None
    assert pair.forward.input_ids[:2] == (m.mask_id, m.mask_id)


def test_an_answer_that_the_tokenizer_does_not_know_is_no_crash():
    m = characters()
    pair = one(m, Fact("a", "B", "{a}0{b}", "{b}0{a}", a_answers=("é", "c")))
    assert pair.unsupported is None
    assert pair.reverse.other_answers == (tuple(m.tokenizer("c")["input_ids"]),)


def test_a_prompt_may_be_too_long():
    fact = Fact("ab", "C", "{a}00{b}", "{b}0{a}")
    pair = one(characters(max_length=4), fact)
    assert pair.forward.unsupported == "it has 5 tokens, the model holds 4"
    assert pair.reverse.unsupported is None
    assert one(characters(max_length=5), fact).unsupported is None
    assert one(characters(max_length=None), fact).unsupported is None


# --- other answers, other targets ---


def test_other_answers_are_those_to_what_is_asked():
    m = characters()
    ids = {text: tuple(m.tokenizer(text)["input_ids"]) for text in ("c", "de", "F")}
    fact = Fact("a", "B", "{a}0{b}", "{b}0{a}", a_answers=("c", "de"), b_answers=("F",))
    same, swapped = one(m, fact), one(m, fact, "swapped")
    assert same.forward.other_answers == same.reverse.other_answers == (ids["c"], ids["de"])
    assert swapped.forward.other_answers == (ids["F"],)
    assert swapped.reverse.other_answers == (ids["c"], ids["de"])


def test_other_answers_are_cut_as_they_would_be_in_place():
    m = using(byte_level(trim_offsets=True))
    template = ("{a} is the capital of {b}.", "The capital of {b} is {a}.")
    facts = [Fact("Paris", "France", *template, a_answers=("Berlin",)), Fact("Berlin", "Germany", *template)]
    first, second = encode(m, facts)
    assert first.reverse.other_answers == (second.reverse.target_ids,)
    assert first.forward.other_answers == (second.forward.target_ids,)
    # so that a right answer isn't taken for a wrong one
    assert other_targets([first, second])[0] == ()


def test_the_same_prompt_asked_for_other_tokens():
    m = characters()
    query = one(m, Fact("ab", "C", "0{a}.{b}0", "{b}. {a}")).forward
    other = with_target(query, (7, 8), m)
    assert (other.target_ids, other.input_ids, other.rows) == ((7, 8), query.input_ids, query.rows)
    m = characters(Causal)
    query = one(m, Fact("ab", "CDE", "0{a}.{b}00", "{b}. {a}."), "swapped").forward
    other = with_target(query, (7, 8, 9), m)
    assert other.target_ids == (7, 8, 9)
    assert other.input_ids == (*query.input_ids[:4], 7, 8)  # the new tokens are forced, not the old
    assert (other.rows, other.evidence_positions) == (query.rows, query.evidence_positions)
    single = one(m, Fact("a", "B", "{a}0{b}", "{b}0{a}"), "swapped").reverse
    assert with_target(single, (7,), m).input_ids == single.input_ids


@pytest.mark.parametrize(
    ("normalizer", "name", "tokens"),
    [
        (normalizers.NFKC(), "ﬁn½", ["f", "i", "n", "1", "⁄", "2"]),  # one character becomes two, and three
        (normalizers.NFC(), "ne\u0301", ["n", "é"]),  # two characters become one
        (normalizers.NFD(), "né", ["n", "e", "\u0301"]),
    ],
)
def test_evidence_that_the_normaliser_cuts_anew_is_found_whole(normalizer, name, tokens):
    vocabulary = {token: i for i, token in enumerate(["[MASK]", *dict.fromkeys([*"abfin12⁄eé \u0301"])])}
    made = Tokenizer(models.WordLevel(vocabulary))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    m = using(PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]"))
    pair = one(m, Fact("ab", name, "{a} {b} a", "{b} {a}"))
    for query in (pair.forward, pair.reverse):
        assert query.unsupported is None
        assert [shown(m, query)[i] for i in query.evidence_positions] == tokens
        assert [shown(m, query)[i] for i in query.rows] == ["[MASK]"] * 2


def test_a_tokenizer_that_cuts_or_pads_by_itself_is_asked_about_the_whole_text():
    m = rcprobe.load("radd", options={"width": 8})
    fact = rcprobe.Fact("a", "A", "{a}000000{b}", "{b}000000{a}")
    (whole,) = rcprobe.encode(m, [fact])
    before = _tokenizer(m.tokenizer)
    m.tokenizer.backend_tokenizer.enable_truncation(4)
    m.tokenizer.backend_tokenizer.enable_padding(length=32)
    assert _tokenizer(m.tokenizer) == before
    assert rcprobe.encode(m, [fact]) == [whole]
    assert whole.unsupported is None
