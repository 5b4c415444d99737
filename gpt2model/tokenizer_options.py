"""The options of GPT2Tokenizer: names, defaults, and what they may be."""

import codecs
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokenizers import AddedToken

from gpt2model.errors import TokenizerError

Token = str | AddedToken

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SIDES = ("right", "left")
NO_LIMIT = int(1e30)  # model_max_length where nothing says one; transformers writes this number to files
CLEAN_UP_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """Options of the constructor and of `from_pretrained`, under the names that tokenizer_config.json has.

    `errors`: what `decode` does with bytes that are not UTF-8, as in bytes.decode. `add_bos_token`, `add_eos_token`:
    begin and end every row with that token; None leaves it to the post-processor of tokenizer.json.
    `split_special_tokens`: read special tokens in a text as plain characters. The two `clean_up` options act together,
    as in transformers: spaces before punctuation are removed from decoded text where both are true.
    """

    errors: str = "replace"
    unk_token: Token | None = "<|endoftext|>"
    bos_token: Token | None = "<|endoftext|>"
    eos_token: Token | None = "<|endoftext|>"
    pad_token: Token | None = None
    sep_token: Token | None = None
    cls_token: Token | None = None
    mask_token: Token | None = None
    extra_special_tokens: Sequence[Token] | Mapping[str, Token] | None = None
    add_prefix_space: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    model_max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool | None = False
    clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: bool = False
    model_input_names: Sequence[str] = ("input_ids", "attention_mask")

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            one_of(name, getattr(self, name), SIDES)
        for name in NAMED_TOKENS:
            if not isinstance(getattr(self, name), (str, AddedToken, type(None))):
                raise TokenizerError(f"{name} must be a string, an AddedToken or None, not {getattr(self, name)!r}")
        try:
            codecs.lookup_error(self.errors)
        except LookupError as error:
            raise TokenizerError(f"errors={self.errors!r} is none of Python's: replace, ignore, strict, ...") from error


OPTION_NAMES = sorted(option.name for option in fields(TokenizerOptions))


def parse_options(given: Mapping[str, Any]) -> TokenizerOptions:
    """The options of these keywords; a TokenizerError for a name that is none, or a value that cannot be."""
    for name in given:
        if name not in OPTION_NAMES:
            near = difflib.get_close_matches(name, OPTION_NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(OPTION_NAMES)}"
            raise TokenizerError(f"GPT2Tokenizer has no option {name!r}: {hint}")
    return TokenizerOptions(**given)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """The value, or a TokenizerError that lists what is allowed."""
    if value not in allowed:
        raise TokenizerError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
    return str(value)
