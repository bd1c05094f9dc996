"""A model family: a BERT of any size, and a tokenizer with one token a word."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import rcprobe
from rcprobe_capitals.data import capitals

PAD, UNKNOWN, MASK = SPECIAL = ("[PAD]", "[UNK]", "[MASK]")


class WordBert(rcprobe.Adapter):
    """BERT: a masked language model with full attention, learned positions and a norm after each block.

    Built by name it has random weights and knows the words of the ``capitals-in-words`` dataset; a folder or hub id
    with a ``BertForMaskedLM`` checkpoint comes with its own tokenizer.
    """

    name = "word-bert"
    objective, attention = "masked", "full"
    architecture = "BertForMaskedLM"  # it also says which checkpoints are of this family: see Adapter.matches
    # each parameter's group, by the first pattern found in its name; one without a group is an error
    groups: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"word_embeddings": "embedding",
        r"(position|token_type)_embeddings": "position",
        r"^bert.*LayerNorm": "norm",
        r"self\.query": "query",
        r"self\.key": "key",
        r"self\.value": "value",
        r"attention\.output\.dense": "output",
        r"(intermediate|output)\.dense": "mlp",
        r"^cls\.": "head",
    }
    # ov_circuit stays None: it describes a norm before the value projection, where BERT has none. The report
    # then says why the storage signature is undefined; everything else works.
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    tiny: ClassVar[Mapping[str, Any]] = {"hidden_size": 16, "intermediate_size": 32}

    @classmethod
    def build(cls, options: Mapping[str, Any]) -> BertForMaskedLM:
        """A BERT with random weights. The options are those of ``defaults``: ``--option hidden_size=128``."""
        unknown = sorted(set(options) - set(cls.defaults))
        if unknown:
            known = ", ".join(cls.defaults)
            raise rcprobe.RcprobeError(f"{cls.name}: unknown option {unknown[0]!r}; known: {known}")
        sizes = {**cls.defaults, **options}
        config = BertConfig(
            vocab_size=len(vocabulary()),
            pad_token_id=0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=sizes["hidden_size"] ** -0.5,  # BERT's own 0.02 is for a width of 768
            **sizes,
        )
        return BertForMaskedLM(config)

    @classmethod
    def default_tokenizer(cls, options: Mapping[str, Any]) -> PreTrainedTokenizerFast:
        """One token a word or mark of the dataset's statements; fast, because rcprobe needs its offsets."""
        tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            unk_token=UNKNOWN,
            mask_token=MASK,
            model_input_names=["input_ids", "attention_mask"],
        )


def vocabulary() -> dict[str, int]:
    """Token → id: the special tokens, then every word of the dataset in alphabetical order."""
    split = pre_tokenizers.Whitespace().pre_tokenize_str
    words: set[str] = set()
    for fact in capitals().facts:
        for k in range(len(fact.forward)):
            for text in (fact.statement("forward", k)[0], fact.statement("reverse", k)[0]):
                words.update(word for word, _ in split(text))
    return {token: i for i, token in enumerate([*SPECIAL, *sorted(words)])}
