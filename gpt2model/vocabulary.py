"""Tokens and their ids: the vocabulary of GPT2Tokenizer, its named and added tokens, decoding, and saving."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from gpt2model.errors import TokenizerError
from gpt2model.tokenizer_options import CLEAN_UP_BPE, NAMED_TOKENS, NO_LIMIT, Token, TokenizerOptions, one_of

_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class _NamedToken:
    """`tokenizer.pad_token`: the text of a named token, or None; settable to a token of the vocabulary, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: "Vocabulary", owner: type | None = None) -> str | None:
        token = tokenizer._named.get(self.name)
        return None if token is None else str(token)

    def __set__(self, tokenizer: "Vocabulary", token: Token | None) -> None:
        if token is not None and tokenizer._core.token_to_id(str(token)) is None:
            raise TokenizerError(
                f"{self.name}={str(token)!r} is not in the vocabulary; add it by"
                f" add_special_tokens({{{self.name!r}: {str(token)!r}}}) and resize the model's embeddings"
            )
        tokenizer._named[self.name] = token


class _NamedTokenId:
    """`tokenizer.pad_token_id`: the id of a named token, or None; settable to an id of the vocabulary, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.token_name = name.removesuffix("_id")

    def __get__(self, tokenizer: "Vocabulary", owner: type | None = None) -> int | None:
        token = tokenizer._named.get(self.token_name)
        return None if token is None else tokenizer._core.token_to_id(str(token))

    def __set__(self, tokenizer: "Vocabulary", index: int | None) -> None:
        token = None if index is None else tokenizer._core.id_to_token(index)
        if index is not None and token is None:
            raise TokenizerError(f"{self.token_name}_id={index}: no token has this id; there are {len(tokenizer)}")
        tokenizer._named[self.token_name] = token


class Vocabulary:
    """The half of GPT2Tokenizer that knows tokens and ids but no rows: see there."""

    bos_token = _NamedToken()
    eos_token = _NamedToken()
    unk_token = _NamedToken()
    sep_token = _NamedToken()
    pad_token = _NamedToken()
    cls_token = _NamedToken()
    mask_token = _NamedToken()
    bos_token_id = _NamedTokenId()
    eos_token_id = _NamedTokenId()
    unk_token_id = _NamedTokenId()
    sep_token_id = _NamedTokenId()
    pad_token_id = _NamedTokenId()
    cls_token_id = _NamedTokenId()
    mask_token_id = _NamedTokenId()

    def __init__(self, core: Tokenizer, options: TokenizerOptions, added: Mapping[int, AddedToken]) -> None:
        """`core` becomes this object's own. `added`: tokens that the files add, by the id they must get."""
        self._core = core
        self._core.no_truncation()
        self._core.no_padding()
        self._literal_core: Tokenizer | None = None
        self._named: dict[str, Token | None] = {name: getattr(options, name) for name in NAMED_TOKENS}
        extra = options.extra_special_tokens or ()
        self._extra: list[Token] = list(extra.values() if isinstance(extra, Mapping) else extra)
        self.errors = options.errors
        self.model_max_length = NO_LIMIT if options.model_max_length is None else int(options.model_max_length)
        self.padding_side = options.padding_side
        self.truncation_side = options.truncation_side
        self.model_input_names = list(options.model_input_names)
        self.split_special_tokens = options.split_special_tokens
        self.clean_up_tokenization_spaces = bool(options.clean_up_tokenization_spaces)
        self._clean_up_bpe = options.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        self._set_prefix_space(options.add_prefix_space)
        self._register(added)

    def _set_prefix_space(self, add_prefix_space: bool | None) -> None:
        """Have the splitter of a text put a space before it, or not; None leaves it as the file has it."""
        splitter = self._core.pre_tokenizer
        steps = [*iter(splitter)] if isinstance(splitter, pre_tokenizers.Sequence) else [splitter]
        byte_level = [step for step in steps if isinstance(step, pre_tokenizers.ByteLevel)]
        if add_prefix_space and not byte_level:
            raise TokenizerError(f"add_prefix_space=True needs a byte-level splitter; tokenizer.json has {splitter}")
        if add_prefix_space is not None:
            for step in byte_level:
                step.add_prefix_space = add_prefix_space  # the splitter holds the same objects
        self.add_prefix_space = any(step.add_prefix_space for step in byte_level)

    def _register(self, added: Mapping[int, AddedToken]) -> None:
        """Have the library know the files' added tokens and every special token, in the order that gives them ids."""
        self._core.add_tokens([token for _, token in sorted(added.items())])
        for index, token in added.items():
            found = self._core.token_to_id(token.content)
            if found != index:
                raise TokenizerError(
                    f"the added token {token.content!r} has id {index} in the tokenizer's files, and would get {found}"
                    f" here: a new token comes after the {self.vocab_size} of the vocabulary, without a gap"
                )
        known = set(self.added_tokens_encoder)
        special = [_checked(token) for token in (*self._named.values(), *self._extra) if token is not None]
        self._core.add_special_tokens([token for token in special if str(token) not in known])

    def __len__(self) -> int:
        """Number of tokens, added ones included: what `model.resize_token_embeddings` wants."""
        return self._core.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self._core.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, with its id."""
        return self._core.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added and special tokens with their flags, by id."""
        return dict(sorted(self._core.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the added and special tokens."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """`added_tokens_encoder`."""
        return self.added_tokens_encoder

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named tokens that are set."""
        return {name: str(token) for name, token in self._named.items() if token is not None}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name."""
        return [str(token) for token in self._extra]

    @property
    def all_special_tokens(self) -> list[str]:
        """Named and extra special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return [index for token in self.all_special_tokens if (index := self._core.token_to_id(token)) is not None]

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens at the end of the vocabulary and return how many were new.

        The model does not know them until `model.resize_token_embeddings(len(tokenizer))`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        for token in tokens:
            _checked(token)
        self._literal_core = None
        return self._core.add_special_tokens(tokens) if special_tokens else self._core.add_tokens(tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Name tokens (`{"pad_token": "<|pad|>"}`), adding those that are new; return how many were.

        Keys are the named tokens and "extra_special_tokens", a list, which replaces the present one or is appended.
        The model does not know new tokens until `model.resize_token_embeddings(len(tokenizer))`.
        """
        named, extra = _special_tokens(special_tokens_dict)
        added = self.add_tokens([*named.values(), *extra], special_tokens=True)
        self._named.update(named)
        kept = [] if replace_extra_special_tokens and extra else self._extra
        self._extra = [*kept, *(token for token in extra if str(token) not in {str(old) for old in kept})]
        return added

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int | None] | None:
        """Ids of tokens, `unk_token_id` for those the vocabulary lacks."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._core.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Tokens of ids, as the vocabulary spells them; None for an id that no token has."""
        if isinstance(ids, int):
            return self._core.id_to_token(_checked_ids([ids])[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._core.id_to_token(index) for index in _checked_ids(as_lists(ids)) if index not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens stand for."""
        return self._text_of(list(tokens))

    @overload
    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = ...,
        clean_up_tokenization_spaces: bool | None = ...,
    ) -> str: ...
    @overload
    def decode(
        self, token_ids: Any, skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool | None = ...
    ) -> Any: ...
    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Text of one row of ids (a list, array or tensor, or one id); a list of texts for a batch of rows.

        Bytes that are no UTF-8 become U+FFFD, or what `errors` says; an id that no token has is left out.
        """
        ids = as_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], (list, tuple)):
            return self.batch_decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
        row = [ids] if isinstance(ids, int) else ids
        return self.batch_decode([row], skip_special_tokens, clean_up_tokenization_spaces)[0]

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each row of ids, as `decode` gives it, in the library's threads."""
        rows = [_checked_ids([row] if isinstance(row, int) else row) for row in map(as_lists, as_lists(sequences))]
        if self.errors == "replace":
            texts = self._core.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        else:
            texts = [self._text_of(self._spelled(row, skip_special_tokens)) for row in rows]
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return [_cleaned(text) for text in texts] if clean and self._clean_up_bpe else texts

    def _spelled(self, ids: Sequence[int], skip_special_tokens: bool) -> list[str]:
        added = self._core.get_added_tokens_decoder() if skip_special_tokens else {}
        skipped = {index for index, token in added.items() if token.special}
        tokens = (self._core.id_to_token(index) for index in ids if index not in skipped)
        return [token for token in tokens if token is not None]

    def _text_of(self, tokens: list[str]) -> str:
        if self.errors == "replace":  # the only way the library knows
            return str(self._core.decoder.decode(tokens))
        raw = b"".join(map(bytes_of, tokens))
        try:
            return raw.decode(errors=self.errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"the ids make no UTF-8 text ({error.reason} at byte {error.start} of {len(raw)}), and"
                " errors='strict' refuses that: use errors='replace'"
            ) from error

    def _settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says of the vocabulary."""
        added = {str(index): _described(token) for index, token in self.added_tokens_decoder.items()}
        return {
            "add_prefix_space": self.add_prefix_space,
            "added_tokens_decoder": added,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "errors": self.errors,
            "extra_special_tokens": self.extra_special_tokens,
            "model_input_names": self.model_input_names,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "split_special_tokens": self.split_special_tokens,
            "tokenizer_class": "GPT2Tokenizer",
            "truncation_side": self.truncation_side,
            **({CLEAN_UP_BPE: True} if self._clean_up_bpe else {}),
            **{name: None if token is None else str(token) for name, token in self._named.items()},
        }


def as_lists(values: Any) -> Any:
    """Ids out of a tensor, an array, a list of them, or an encoding."""
    if isinstance(values, Mapping):
        values = values["input_ids"]
    if hasattr(values, "tolist"):
        return values.tolist()
    if not isinstance(values, (list, tuple)):
        return values
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def _checked(token: Any) -> Token:
    if not isinstance(token, (str, AddedToken)) or not str(token):
        raise TokenizerError(f"a token is a string or an AddedToken, and not empty; this one is {token!r}")
    return token


def _checked_ids(ids: Any) -> list[int]:
    row = list(ids)
    for position, index in enumerate(row):
        if type(index) is not int or not 0 <= index < 2**32:
            raise TokenizerError(
                f"ids[{position}] is {index!r}; ids are integers from 0 (mask out labels of -100 first)"
            )
    return row


def _special_tokens(given: Mapping[str, Token | Sequence[Token]]) -> tuple[dict[str, Token], list[Token]]:
    """The named tokens and the others, strings made special tokens that no normalizer touches."""
    named: dict[str, Token] = {}
    extra: list[Token] = []
    for name, value in given.items():
        if name in ("extra_special_tokens", "additional_special_tokens"):
            if isinstance(value, (str, AddedToken)):
                raise TokenizerError(f"{name} takes a list of tokens, not {value!r}")
            extra = [_special(token) for token in value]
        elif isinstance(value, (str, AddedToken)):
            named[one_of("the name of a special token", name, (*NAMED_TOKENS, "extra_special_tokens"))] = _special(
                value
            )
        else:
            raise TokenizerError(f"{name} takes one token, a string or an AddedToken, not {value!r}")
    return named, extra


def _special(token: Token) -> Token:
    return AddedToken(token, normalized=False, special=True) if isinstance(token, str) else token


def _described(token: AddedToken) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {flag: getattr(token, flag) for flag in flags}


def _byte_alphabet() -> dict[str, int]:
    """The byte each character of a token stands for: itself where it prints, else the next character from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def bytes_of(token: str) -> bytes:
    """A token's bytes; an added token with other characters, such as a space, stands for itself."""
    known = [_BYTE_OF.get(character) for character in token]
    return token.encode() if None in known else bytes(byte for byte in known if byte is not None)


def _cleaned(text: str) -> str:
    for spaced, joined in _CLEANED:
        text = text.replace(spaced, joined)
    return text
