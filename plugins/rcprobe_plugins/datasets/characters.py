"""A tokenizer of single characters, for tasks whose vocabulary is an alphabet."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rcprobe.errors import DataError

MASK = "[MASK]"


def vocabulary(alphabet: str, mask: bool) -> dict[str, int]:
    """Token → id: the alphabet's characters in order and then, with ``mask``, ``[MASK]`` as the last id.

    Raises ``DataError`` for an alphabet that is empty or repeats a character.
    """
    if not alphabet:
        raise DataError("the alphabet is empty; give at least one character")
    repeated = next((c for c in alphabet if alphabet.count(c) > 1), None)
    if repeated is not None:
        raise DataError(f"the alphabet holds {repeated!r} more than once; each character needs one id")
    return {token: i for i, token in enumerate([*alphabet, *([MASK] if mask else [])])}


def character_tokenizer(alphabet: str, mask: bool) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token a character of ``alphabet``; it adds no special token by itself.

    Padding is the alphabet's first character (id 0): the vocabulary has no room for another, and the
    attention mask hides it. Decode with ``skip_special_tokens=False`` (the default), or text loses it.

    There is no unknown token either: a character outside the alphabet makes a call raise tokenizers'
    ``Exception("WordLevel error: Missing [UNK] token …")``, never drop or replace it, and
    ``convert_tokens_to_ids`` gives None for it. Raises ``DataError`` as ``vocabulary`` does.
    """
    tokenizer = Tokenizer(models.WordLevel(vocabulary(alphabet, mask)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=alphabet[0],
        mask_token=MASK if mask else None,
        model_input_names=["input_ids", "attention_mask"],  # no token types: the models take none
        clean_up_tokenization_spaces=False,
    )
