from string import ascii_lowercase, ascii_uppercase

import pytest
from transformers import AutoTokenizer

from rcprobe.errors import DataError
from rcprobe.plugins import registry
from rcprobe_plugins.datasets.characters import character_tokenizer, vocabulary
from rcprobe_plugins.datasets.letters import ALPHABET, letters


def texts(fact, direction):
    return [fact.statement(direction, k)[0] for k in range(len(getattr(fact, direction)))]


def test_length_three_is_the_papers_example():
    d = letters(3).facts[3]
    assert (d.a, d.b) == ("d", "D")
    assert texts(d, "forward") == ["dD0", "d0D", "0dD"]
    assert texts(d, "reverse") == ["0Dd", "D0d", "Dd0"]


def test_every_placement_and_its_mirror_image():
    dataset = letters()
    assert dataset.name == "letters"
    assert dataset.replicate == "seed"
    assert [(fact.a, fact.b) for fact in dataset.facts] == list(zip(ascii_lowercase, ascii_uppercase, strict=True))
    for fact in dataset.facts:
        forward, reverse = texts(fact, "forward"), texts(fact, "reverse")
        assert len(forward) == 45
        assert len(set(forward)) == len(set(reverse)) == 45
        assert reverse == [text[::-1] for text in forward]
        assert all(len(text) == 10 and text.index(fact.a) < text.index(fact.b) for text in forward)


def test_readings_are_all_letters_first_then_the_case_of_the_target():
    readings = letters(4).readings
    assert list(readings) == ["52 letters", "26 letters"]
    assert readings["26 letters"] == (tuple(ascii_lowercase), tuple(ascii_uppercase))
    assert readings["52 letters"] == (tuple(ascii_lowercase + ascii_uppercase),)


def test_the_dataset_is_registered():
    assert registry().get("datasets", "letters") is letters


def test_two_letters_need_two_places():
    assert len(letters(2).facts[0].forward) == 1
    with pytest.raises(DataError, match="length 1"):
        letters(1)
    with pytest.raises(DataError, match="length 5000 has 12497500 placements"):
        letters(5000)


@pytest.mark.parametrize("mask", [True, False])
def test_one_token_a_character_with_its_offsets(mask):
    tokenizer = character_tokenizer(ALPHABET, mask)
    encoded = tokenizer("00a0Bz", return_offsets_mapping=True)
    assert encoded["input_ids"] == [0, 0, 1, 0, 28, 26]
    assert encoded["offset_mapping"] == [(i, i + 1) for i in range(6)]
    assert set(encoded) == {"input_ids", "attention_mask", "offset_mapping"}
    assert tokenizer.decode(encoded["input_ids"]) == "00a0Bz"
    assert len(tokenizer) == 53 + mask


def test_the_mask_is_the_last_id_and_padding_is_the_placeholder():
    tokenizer = character_tokenizer(ALPHABET, mask=True)
    assert tokenizer.mask_token_id == 53 == len(tokenizer) - 1
    assert tokenizer("a[MASK]0")["input_ids"] == [1, 53, 0]
    assert tokenizer.pad_token_id == 0
    padded = tokenizer(["a", "aA0"], padding=True)
    assert padded["input_ids"] == [[1, 0, 0], [1, 27, 0]]
    assert padded["attention_mask"] == [[1, 0, 0], [1, 1, 1]]
    assert character_tokenizer(ALPHABET, mask=False).mask_token_id is None


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    character_tokenizer(ALPHABET, mask=True).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("0aB[MASK]")["input_ids"] == [0, 1, 28, 53]
    assert (again.pad_token_id, again.mask_token_id, len(again)) == (0, 53, 54)
    with pytest.raises(Exception, match="Missing"):
        again("a!")


def test_unknown_characters_are_never_read_silently():
    tokenizer = character_tokenizer("0ab", mask=True)
    with pytest.raises(Exception, match="Missing"):  # tokenizers raises the bare class
        tokenizer("a!")
    assert tokenizer.convert_tokens_to_ids("!") is None
    assert tokenizer.unk_token_id is None


def test_white_space_and_any_script_are_characters_too():
    tokenizer = character_tokenizer("ä \n漢", mask=False)
    encoded = tokenizer("漢\nä ", return_offsets_mapping=True)
    assert encoded["input_ids"] == [3, 2, 0, 1]
    assert encoded["offset_mapping"] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert tokenizer.decode(encoded["input_ids"]) == "漢\nä "


@pytest.mark.parametrize(("alphabet", "message"), [("", "empty"), ("0a0", "'0' more than once")])
def test_an_alphabet_holds_each_character_once(alphabet, message):
    with pytest.raises(DataError, match=message):
        vocabulary(alphabet, mask=True)
