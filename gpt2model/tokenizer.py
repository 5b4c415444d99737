"""GPT2Tokenizer: byte-level BPE by the tokenizers library (Rust), with the interface of transformers' GPT2Tokenizer."""

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Encoding, Tokenizer

from gpt2model import hub, tokenizer_files
from gpt2model.encoding import PADDINGS, TRUNCATIONS, BatchEncoding, Padding, Ragged, Truncation, as_tensors
from gpt2model.errors import TokenizerError
from gpt2model.tokenizer_input import Text, TextBatch, all_strings, as_batch, check_batch
from gpt2model.tokenizer_options import NO_LIMIT, OPTION_NAMES, SIDES, one_of, parse_options
from gpt2model.tokenizer_template import Template
from gpt2model.vocabulary import Vocabulary, as_lists


class GPT2Tokenizer(Vocabulary):
    """Text to ids and back, as transformers' GPT2Tokenizer does it.

    Encoding and decoding write nothing to the tokenizer, so one object may be shared between threads; adding tokens
    may not happen meanwhile. The object can be pickled and deep-copied.

    `vocab` and `merges`: in memory, or files. Further options are those of `TokenizerOptions`. Raises TokenizerError
    for unknown options, and for files or mappings that make no vocabulary.
    """

    pad_token_type_id: ClassVar[int] = 0

    def __init__(
        self,
        vocab: Mapping[str, int] | str | os.PathLike[str],
        merges: Iterable[str | tuple[str, str]] | str | os.PathLike[str],
        **options: Any,
    ) -> None:
        known = parse_options(options)
        super().__init__(tokenizer_files.build_core(vocab, merges), known, added={})
        self._unread: dict[str, Any] = {}
        self._take_template(known.add_bos_token, known.add_eos_token)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        endpoint: str | None = None,
        **options: Any,
    ) -> Self:
        """The tokenizer of a folder or of a Hub repository; `options` win over what its files say.

        Raises CheckpointError where there is no such folder or repository, TokenizerError, naming the file, for what
        is in it, and for unknown options.
        """
        parse_options(options)
        snapshot = hub.resolve(
            path_or_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            endpoint=endpoint,
            patterns=tokenizer_files.ALL_FILES,
        )
        files = tokenizer_files.read_folder(Path(snapshot.folder))
        settings, unread = _known_settings(files)
        known = parse_options({**settings, **options})
        tokenizer = cls.__new__(cls)
        Vocabulary.__init__(tokenizer, files.core, known, files.added)
        tokenizer._unread = unread
        tokenizer._take_template(known.add_bos_token, known.add_eos_token)
        return tokenizer

    def _take_template(self, add_bos_token: bool | None, add_eos_token: bool | None) -> None:
        """Take the post-processor away from the library's tokenizer: rows are cut before it is applied, by us."""
        found, self._core.post_processor = self._core.post_processor, None
        if found is None or add_bos_token is not None or add_eos_token is not None:
            self._template = self._made(bool(add_bos_token), bool(add_eos_token))
        else:
            self._template = Template.found(found)

    def _made(self, begins: bool, ends: bool) -> Template:
        return Template.made(self._special("bos_token") if begins else [], self._special("eos_token") if ends else [])

    def _special(self, name: str) -> list[tuple[str, int]]:
        token, index = getattr(self, name), getattr(self, f"{name}_id")
        if token is None:
            raise TokenizerError(f"add_{name}=True needs a {name}, and this tokenizer has none")
        return [(token, index)]

    @property
    def add_bos_token(self) -> bool:
        """Whether every row begins with `bos_token`."""
        return self._template.begins

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._template = self._made(value, self._template.ends)

    @property
    def add_eos_token(self) -> bool:
        """Whether every row ends with `eos_token`."""
        return self._template.ends

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._template = self._made(self._template.begins, value)

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Encode a string, a list of strings, or words with `is_split_into_words`, each with or without a pair.

        padding: True or "longest", "max_length", False. truncation: True or "longest_first", "only_first",
        "only_second", False; a `max_length` alone truncates. With `return_overflowing_tokens` what was cut becomes
        rows of its own, `stride` tokens repeated, and `overflow_to_sample_mapping` says whose. Words get a space in
        front only with `add_prefix_space`. return_tensors: "pt" or "np", [rows, tokens] int64, or None for lists.

        Raises TokenizerError for a text that is no string or has a lone surrogate, and for lengths that cannot be met.
        """
        batch = as_batch(text, text_pair, is_split_into_words)
        cut = self._truncation(truncation, max_length, stride, guess=padding is False)
        fill = self._padding(padding, max_length, pad_to_multiple_of, padding_side, truncated=cut is not None)
        rows = self._encode(batch, add_special_tokens, cut, self._core_for(split_special_tokens))
        if fill is not None:
            fill.apply(rows)
        shown = [[row, *row.overflowing] if return_overflowing_tokens else [row] for row in rows]
        wanted = {
            "token_type_ids": self._wants("token_type_ids", return_token_type_ids),
            "attention_mask": self._wants("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        columns = self._columns(shown, [name for name, asked in wanted.items() if asked])
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = [index for index, group in enumerate(shown) for _ in group]
        elif batch.single and return_tensors is None:
            columns = {name: values if name == "length" else values[0] for name, values in columns.items()}
        return BatchEncoding(as_tensors(columns, return_tensors), [row for group in shown for row in group])

    def _encode(self, batch: TextBatch, add_special: bool, cut: Truncation | None, core: Tokenizer) -> list[Encoding]:
        """One encoding a row, cut, the template applied."""
        texts = [*batch.firsts, *(batch.seconds or ())]
        try:
            raw = core.encode_batch(texts, is_pretokenized=batch.words, add_special_tokens=False)
        except TypeError:
            check_batch(batch)
            raise
        count = len(batch.firsts)
        seconds: list[Encoding | None] = [None] * count if batch.seconds is None else [*raw[count:]]
        added = self.num_special_tokens_to_add(batch.seconds is not None) if add_special else 0
        rows = []
        for index, (first, second) in enumerate(zip(raw[:count], seconds, strict=True)):
            if cut is not None:
                cut.apply(first, second, added, "the text" if batch.single else f"text[{index}]")
            rows.append(self._template.apply(first, second, add_special))
        return rows

    def _columns(self, groups: Sequence[Sequence[Encoding]], names: Sequence[str]) -> dict[str, Any]:
        """Lists, one entry a row, from groups of a row and its overflow."""
        read: dict[str, Callable[[Encoding], Any]] = {
            "attention_mask": lambda row: row.attention_mask,
            "special_tokens_mask": lambda row: row.special_tokens_mask,
            "offset_mapping": lambda row: row.offsets,
            "length": lambda row: len(row.ids),
        }
        columns: dict[str, Any] = {"input_ids": [row.ids for group in groups for row in group]}
        for name in names:
            if name == "token_type_ids":
                columns[name] = [
                    self._template.type_ids(row, at > 0) for group in groups for at, row in enumerate(group)
                ]
            else:
                columns[name] = [read[name](row) for group in groups for row in group]
        return columns

    def _wants(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _truncation(
        self, truncation: bool | str | None, max_length: int | None, stride: int, guess: bool
    ) -> Truncation | None:
        if truncation is None:
            truncation = guess and max_length is not None
        strategy = ("do_not_truncate", "longest_first")[truncation] if isinstance(truncation, bool) else truncation
        one_of("truncation", strategy, TRUNCATIONS)
        limit = self._limit(max_length)
        if strategy == "do_not_truncate" or limit is None:
            return None
        if limit < 0 or stride < 0:
            raise TokenizerError(f"max_length={limit} and stride={stride} must not be negative")
        if 0 < stride >= limit:
            raise TokenizerError(f"stride={stride} must be less than max_length={limit}")
        return Truncation(strategy, limit, stride, one_of("truncation_side", self.truncation_side, SIDES))

    def _padding(
        self, padding: bool | str, max_length: int | None, multiple: int | None, side: str | None, truncated: bool
    ) -> Padding | None:
        strategy = ("do_not_pad", "longest")[padding] if isinstance(padding, bool) else padding
        one_of("padding", strategy, PADDINGS)
        limit = self._limit(max_length)
        if strategy == "do_not_pad" or (strategy == "max_length" and limit is None):
            return None
        token, index = self.pad_token, self.pad_token_id
        if token is None or index is None:
            raise TokenizerError(
                "padding needs a pad_token, and this tokenizer has none: set tokenizer.pad_token = tokenizer.eos_token"
                " (padding is masked), or add one by add_special_tokens({'pad_token': '<|pad|>'})"
            )
        if truncated and multiple and limit is not None and limit % multiple:
            raise TokenizerError(f"max_length={limit} must be a multiple of pad_to_multiple_of={multiple}")
        if strategy == "longest" and max_length is not None and not truncated:
            warnings.warn("padding to the longest row ignores max_length; use padding='max_length'", stacklevel=3)
        side = one_of("padding_side", self.padding_side if side is None else side, SIDES)
        return Padding(limit if strategy == "max_length" else None, multiple, side, index, token)

    def _limit(self, max_length: int | None) -> int | None:
        if max_length is not None:
            return max_length
        return self.model_max_length if self.model_max_length < NO_LIMIT // 10**10 else None

    def _core_for(self, split_special_tokens: bool | None) -> Tokenizer:
        """The library's tokenizer with or without special tokens recognised: a setting of it, hence two of them."""
        if not (self.split_special_tokens if split_special_tokens is None else split_special_tokens):
            return self._core
        if self._literal_core is None:  # two threads may both make one; either will do
            core = Tokenizer.from_str(self._core.to_str())
            core.encode_special_tokens = True
            self._literal_core = core
        return self._literal_core

    def encode_ragged(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = False,
        return_chars: bool = False,
        split_special_tokens: bool | None = None,
    ) -> Ragged:
        """Ids of many texts, without padding, end to end in one array: the fastest way.

        The work is done in the library's threads, without Python's lock; TOKENIZERS_PARALLELISM and RAYON_NUM_THREADS
        govern them. `return_chars` costs half as much again. Raises TokenizerError, naming the text by its index, as
        `__call__` does.
        """
        if isinstance(texts, str):
            raise TokenizerError("encode_ragged takes a sequence of strings, not one string: pass [text]")
        batch: list[Text] = list(texts)
        if not all_strings(batch):  # the library would read a tuple of two as a pair
            check_batch(TextBatch(batch, None, single=False, words=False))
        core = self._core_for(split_special_tokens)
        encode = core.encode_batch if return_chars else core.encode_batch_fast
        try:
            encodings = encode(batch, add_special_tokens=False)
        except TypeError:
            check_batch(TextBatch(batch, None, single=False, words=False))
            raise
        if add_special_tokens and self.num_special_tokens_to_add():
            encodings = [self._template.apply(row, None, True) for row in encodings]
        ids = [row.ids for row in encodings]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)), out=offsets[1:])
        total = int(offsets[-1])
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=total)
        if not return_chars:
            return Ragged(flat, offsets)
        bounds = itertools.chain.from_iterable(itertools.chain.from_iterable(row.offsets for row in encodings))
        return Ragged(flat, offsets, np.fromiter(bounds, dtype=np.int64, count=2 * total).reshape(total, 2))

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The `input_ids` of `__call__` with the same options: a list of ids for one text."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text, as the vocabulary spells them: a space is Ġ, other bytes have a character each."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Tokens that the template adds to a row."""
        return self._template.num_added(pair)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Fill encoded rows (a mapping of columns, or a list of rows) to one length; the given ones stay as they are.

        Columns other than ids, masks and token types are passed on. Tensors come back as tensors.
        """
        given = encoded_inputs if isinstance(encoded_inputs, Mapping) else _transposed(encoded_inputs)
        if "input_ids" not in given:
            raise TokenizerError(f"pad needs input_ids; it was given {sorted(given)}")
        kind = return_tensors or _tensor_kind(given["input_ids"])
        columns = {name: as_lists(values) for name, values in given.items()}
        single = not (columns["input_ids"] and isinstance(columns["input_ids"][0], (list, tuple)))
        rows = {name: [values] if single else values for name, values in columns.items()}
        if self._wants("attention_mask", return_attention_mask):
            rows.setdefault("attention_mask", [[1] * len(row) for row in rows["input_ids"]])
        fill = self._padding(padding, max_length, pad_to_multiple_of, padding_side, truncated=False)
        if fill is not None:
            rows = _filled(rows, fill)
        columns = {name: values[0] for name, values in rows.items()} if single else rows
        return BatchEncoding(as_tensors(columns, kind))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json; transformers reads them too."""
        description = json.loads(self._core.to_str())
        description["post_processor"] = self._template.description()
        settings = {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token, **self._settings()}
        tokenizer_files.write_folder(Path(folder), description, {**self._unread, **settings})


def _known_settings(files: tokenizer_files.TokenizerFiles) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that are options, and the others, which are kept for saving.

    tokenizer.json has its own template, and perhaps sides of padding and truncation that its author set.
    """
    known = {name: value for name, value in files.settings.items() if name in OPTION_NAMES}
    unread = {name: value for name, value in files.settings.items() if name not in OPTION_NAMES}
    if files.from_tokenizer_json:
        known = {name: value for name, value in known.items() if name not in ("add_bos_token", "add_eos_token")}
    for name, set_up in (("padding_side", files.core.padding), ("truncation_side", files.core.truncation)):
        if set_up:
            known.setdefault(name, set_up["direction"])
    return known, unread


def _transposed(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    if not rows or not all(isinstance(row, Mapping) and row.keys() == rows[0].keys() for row in rows):
        raise TokenizerError("pad needs a mapping, or a list of mappings with the same keys")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _tensor_kind(ids: Any) -> str | None:
    sample = ids[0] if isinstance(ids, (list, tuple)) and ids else ids
    return None if not hasattr(sample, "tolist") else "np" if isinstance(sample, (np.ndarray, np.generic)) else "pt"


def _filled(rows: Mapping[str, list[Any]], fill: Padding) -> dict[str, list[Any]]:
    fillers = {"input_ids": fill.pad_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    target = fill.target([len(row) for row in rows["input_ids"]])
    return {
        name: [fill.fill(row, fillers[name], target) for row in values] if name in fillers else values
        for name, values in rows.items()
    }
