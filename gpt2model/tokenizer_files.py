"""A tokenizer's files: tokenizer.json, or vocab.json with merges.txt, and the settings beside them.

The names, and which file wins where two say different things, are those of Hugging Face transformers 5.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from gpt2model.errors import TokenizerError

TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
ALL_FILES = (TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)

# What transformers notes about one loading or one machine: not the tokenizer's, so neither obeyed nor written back.
_NOT_SETTINGS = frozenset(
    [
        "backend",
        "files_loaded",
        "init_inputs",
        "is_local",
        "local_files_only",
        "merges_file",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_class",
        "tokenizer_file",
        "vocab_file",
    ]
)
_RENAMED = {"max_len": "model_max_length", "additional_special_tokens": "extra_special_tokens"}

Merge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder holds. `added`: tokens beside the BPE vocabulary, by the id the files give them."""

    core: Tokenizer
    from_tokenizer_json: bool
    settings: Mapping[str, Any]
    added: Mapping[int, AddedToken]


def read_folder(folder: Path) -> TokenizerFiles:
    """Read the tokenizer of a folder.

    Raises TokenizerError, naming the file, for files that are missing, malformed or contradict each other.
    """
    found = _read_object(folder / CONFIG_FILE)
    added = _added_tokens(found.pop("added_tokens_decoder", None), folder / CONFIG_FILE)
    settings = _as_tokens(found, special=False)
    if added is None:
        # Files from before transformers 4.34, which wrote these two beside the config.
        settings |= _as_tokens(_read_object(folder / SPECIAL_TOKENS_FILE), special=True)
        added = _legacy_added_tokens(folder / ADDED_TOKENS_FILE, _special_texts(settings))
    whole = folder / TOKENIZER_FILE
    if whole.is_file():
        return TokenizerFiles(read_tokenizer_json(whole), True, settings, added)
    missing = [name for name in (VOCAB_FILE, MERGES_FILE) if not (folder / name).is_file()]
    if missing:
        raise TokenizerError(
            f"{folder}: no {TOKENIZER_FILE}, and no {' and no '.join(missing)}; a GPT-2 tokenizer is {TOKENIZER_FILE},"
            f" or {VOCAB_FILE} with {MERGES_FILE}"
        )
    return TokenizerFiles(build_core(folder / VOCAB_FILE, folder / MERGES_FILE), False, settings, added)


def read_tokenizer_json(path: Path) -> Tokenizer:
    """The library's own file, which must describe a BPE tokenizer."""
    text = _read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{path}: is no tokenizer file that can be read ({error}); is it whole?") from error
    if not isinstance(tokenizer.model, BPE):
        kind = type(tokenizer.model).__name__
        raise TokenizerError(f"{path}: holds a {kind} tokenizer; GPT-2's is byte-level BPE")
    return tokenizer


def build_core(
    vocab: Mapping[str, int] | str | os.PathLike[str], merges: Iterable[str | Merge] | str | os.PathLike[str]
) -> Tokenizer:
    """GPT-2's byte-level BPE from a vocabulary and its merges in order, each in memory or as a file.

    Raises TokenizerError where a merge names a token that the vocabulary lacks, or ids are no ids.
    """
    vocab_place = "vocab" if isinstance(vocab, Mapping) else str(vocab)
    tokens = dict(vocab) if isinstance(vocab, Mapping) else _read_object(Path(vocab))
    for token, index in tokens.items():
        if type(index) is not int or not 0 <= index < 2**32:
            raise TokenizerError(f"{vocab_place}: the id of {token!r} is {index!r}; ids are integers from 0")
    core = Tokenizer(BPE(vocab=tokens, merges=_checked_merges(merges, tokens, vocab_place)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _checked_merges(
    merges: Iterable[str | Merge] | str | os.PathLike[str], vocab: Mapping[str, int], vocab_place: str
) -> list[Merge]:
    rows: Iterator[str | Merge]
    if isinstance(merges, (str, os.PathLike)):
        place, rows = str(merges), iter(_read_text(Path(merges)).split("\n"))
    else:
        place, rows = "merges", iter(merges)
    checked = []
    for number, row in enumerate(rows, 1):
        if row == "" or (isinstance(row, str) and row.startswith("#version")):
            continue
        pair = tuple(row.split(" ")) if isinstance(row, str) else tuple(row)
        if len(pair) != 2:
            raise TokenizerError(f"{place}, line {number}: {row!r} is not two tokens with a space between them")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise TokenizerError(
                    f"{place}, line {number}: the merge {row!r} needs the token {token!r}, which {vocab_place} lacks;"
                    " do the two files belong together?"
                )
        checked.append(pair)
    return checked


def write_folder(folder: Path, description: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write tokenizer.json (the description), vocab.json, merges.txt and tokenizer_config.json (the settings)."""
    folder.mkdir(parents=True, exist_ok=True)
    model = description["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    _write(folder / TOKENIZER_FILE, json.dumps(description, indent=2, ensure_ascii=False))
    _write(folder / VOCAB_FILE, json.dumps(vocab, ensure_ascii=False))
    _write(folder / MERGES_FILE, "\n".join(["#version: 0.2", *merges]))
    _write(folder / CONFIG_FILE, json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _as_tokens(found: Mapping[str, Any], special: bool) -> dict[str, Any]:
    """Settings under their newer names, each description of a token made one: `special` where the file is silent."""
    return {
        _RENAMED.get(name, name): _as_token(value, special)
        for name, value in found.items()
        if name not in _NOT_SETTINGS
    }


def _as_token(value: Any, special: bool) -> Any:
    if isinstance(value, list):
        return [_as_token(entry, special) for entry in value]
    if not isinstance(value, dict) or "content" not in value:
        return value
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{"special": special, **{key: value[key] for key in known if key in value}})


def _added_tokens(found: Any, place: Path) -> dict[int, AddedToken] | None:
    if found is None:
        return None
    try:
        tokens = {int(index): _as_token(value, special=False) for index, value in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"{place}: added_tokens_decoder must map ids to tokens: {error}") from error
    for index, token in tokens.items():
        if not isinstance(token, AddedToken):
            raise TokenizerError(f"{place}: added_tokens_decoder[{index}] is no description of a token: {token!r}")
    return tokens


def _legacy_added_tokens(path: Path, special: Sequence[str]) -> dict[int, AddedToken]:
    found = _read_object(path)
    for text, index in found.items():
        if type(index) is not int:
            raise TokenizerError(f"{path}: the id of {text!r} is {index!r}; ids are integers")
    return {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in found.items()
    }


def _special_texts(settings: Mapping[str, Any]) -> list[str]:
    named = [str(value) for name, value in settings.items() if name.endswith("_token") and _is_token(value)]
    extra = settings.get("extra_special_tokens") or []
    return named + [str(token) for token in (extra.values() if isinstance(extra, dict) else extra)]


def _is_token(value: Any) -> bool:
    return isinstance(value, (str, AddedToken))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file, except for the vocabulary."""
    if path.name != VOCAB_FILE and not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: is not JSON ({error}); is the file whole?") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value
