"""Hugging Face's names for GPT-2's weights, in all the ways that files have them.

Canonical names are those of transformers' models with a head: ``transformer.h.0.attn.c_attn.weight``,
``lm_head.weight``. Files differ from them in that

- a base model's file has no ``transformer.`` in front;
- wrappers put ``module.`` (DistributedDataParallel) or ``_orig_mod.`` (torch.compile) before everything;
- old files call a layer norm's weight and bias ``gamma`` and ``beta``;
- old files carry the causal mask as buffers (``attn.bias``, ``attn.masked_bias``), which no longer are weights;
- a head tied to the token embedding may be absent, or there with the embedding's values, or with others.
"""

import re
from collections.abc import Iterable, Mapping

from gpt2model.errors import CheckpointError, WeightsMismatch

Shape = tuple[int, ...]

BASE_PREFIX = "transformer."
# What heads call their weights; with anything else in front of it, a name is the base model's.
HEAD_PREFIXES = ("lm_head.", "multiple_choice_head.", "score.", "classifier.", "qa_outputs.")
TIED_HEAD = "lm_head.weight"
TIED_EMBEDDING = "transformer.wte.weight"

_WRAPPER = re.compile(r"^(?:module\.|_orig_mod\.)+")
_MASK_BUFFER = re.compile(r"^transformer\.h\.\d+\.(?:attn|crossattention)\.(?:bias|masked_bias)$")
_OLD_NORM = re.compile(r"(\.ln_\w+)\.(gamma|beta)$")
_MODERN_NORM = {"gamma": "weight", "beta": "bias"}
# What bitsandbytes keeps beside a quantized weight.
_QUANTIZED = (".absmax", ".quant_map", ".SCB", ".weight_format")
_SHOWN = 5


def canonical_name(key: str) -> str | None:
    """The canonical name of a key in a file; None for what old files hold beside the weights."""
    name = _WRAPPER.sub("", key)
    if not name.startswith((BASE_PREFIX, *HEAD_PREFIXES)):
        name = BASE_PREFIX + name
    if _MASK_BUFFER.match(name):
        return None
    return _OLD_NORM.sub(lambda found: f"{found[1]}.{_MODERN_NORM[found[2]]}", name)


def match(
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape | None],
    *,
    tied: bool,
    place: str,
    allow_new_head: bool = False,
) -> dict[str, str]:
    """Which key of the files each of the model's weights is: {name in the model's state_dict: key in the files}.

    ``found`` are the files' keys and shapes, ``expected`` the model's, None for any shape; a model without any name
    below ``transformer.`` is a base model, which leaves the weights of heads aside. ``tied`` says that head and token
    embedding are one weight: either may then be missing. ``place`` names the files in messages. ``allow_new_head``
    lets a head be missing as a whole, and then leaves the weights of other heads aside.

    Raises WeightsMismatch unless every weight is there once, in its shape, and no other is; CheckpointError where two
    keys mean the same weight.
    """
    keys = _by_canonical_name(found, place)
    is_base = not any(name.startswith(BASE_PREFIX) for name in expected)
    wanted = {BASE_PREFIX + name if is_base else name: name for name in expected}
    if tied and TIED_HEAD in wanted:
        _fill_in_tied(keys)
    missing = wanted.keys() - keys.keys()
    if tied and TIED_EMBEDDING in missing:
        missing -= {TIED_HEAD}
    headless = _new_heads(missing, keys)
    new = headless if allow_new_head else set()
    missing -= new
    unexpected = [
        key
        for name, key in keys.items()
        if name not in wanted and not ((is_base or new) and name.startswith(HEAD_PREFIXES))
    ]
    shared = wanted.keys() & keys.keys()
    shapes = {keys[name]: (found[keys[name]], expected[wanted[name]]) for name in shared}
    misshapen = [
        f"{key} is {_shape(had)}, not {_shape(due)}" for key, (had, due) in shapes.items() if due not in (None, had)
    ]
    if missing or unexpected or misshapen:
        lists = ([wanted[name] for name in missing], unexpected, misshapen)
        raise WeightsMismatch(_complaint(place, *map(sorted, lists), headless=missing == headless))
    return {wanted[name]: keys[name] for name in shared}


def _by_canonical_name(found: Mapping[str, Shape], place: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for key in found:
        name = canonical_name(key)
        if name is None:
            continue
        if name in keys:
            raise CheckpointError(f"{place}: {keys[name]!r} and {key!r} are both {name}: remove one of them")
        keys[name] = key
    return keys


def _new_heads(missing: Iterable[str], keys: Iterable[str]) -> set[str]:
    """Those of the missing weights that belong to heads of which the files have nothing."""
    prefixes = tuple(prefix for prefix in HEAD_PREFIXES if not any(name.startswith(prefix) for name in keys))
    return {name for name in missing if name.startswith(prefixes)}


def _fill_in_tied(keys: dict[str, str]) -> None:
    for name, other in ((TIED_HEAD, TIED_EMBEDDING), (TIED_EMBEDDING, TIED_HEAD)):
        if name not in keys and other in keys:
            keys[name] = keys[other]


def _shape(shape: Shape | None) -> str:
    return f"[{', '.join(map(str, shape or ()))}]"


def _complaint(place: str, missing: list[str], unexpected: list[str], misshapen: list[str], *, headless: bool) -> str:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    lists = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    return f"{place}: the weights are not this model's: {'; '.join(lists)}. {_remedy(missing, unexpected, headless)}"


def _few(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _remedy(missing: list[str], unexpected: list[str], headless: bool) -> str:
    if missing == [TIED_HEAD] and not unexpected:
        return "Set tie_word_embeddings to true in config.json, or load the class that the checkpoint was saved from"
    if missing and headless:
        return (
            "Load the class that the checkpoint was saved from: its files have no such head; or draw a new, untrained "
            "one by allow_new_head=True"
        )
    if any(name.endswith(_QUANTIZED) for name in unexpected):
        return "The files are quantized: put quantization_config back into config.json, or load the original"
    if any(name.endswith(_QUANTIZED) for name in missing):
        return "The files are not quantized as quantization_config in config.json says: correct it or remove it"
    return "Load the class that the checkpoint was saved from, and its own config.json"
