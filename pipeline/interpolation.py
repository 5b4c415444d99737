"""`${…}` of job files: what it may name beside other keys, and what is told of one that names nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.dates import now_resolver
from pipeline.job_yaml import Place

_UNSET = re.compile(r"Environment variable '(?P<name>.*)' not found")
_RAISED = re.compile(r"^ValueError raised while resolving interpolation: (?P<what>.*)$", re.MULTILINE)
_ENDS_A_URI = re.compile(r"""[\s'"]""")
_HOLD_URIS = ("input", "output", "model", "cluster", "steps")


@contextmanager
def now_is(moment: datetime) -> Iterator[None]:
    """Inside, `${now:…}` is `moment`; afterwards it is Hydra's own again."""
    OmegaConf.register_new_resolver("now", now_resolver(moment), replace=True)
    try:
        yield
    finally:
        setup_globals()


class Unresolved(Exception):
    """An interpolation that names nothing, or not as it must; `place` is the key that holds it."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


def mapping_of(composed: DictConfig, resolve: bool) -> dict[str, Any]:
    """The composed job as a plain mapping, its interpolations resolved or as they are written."""
    mapping = OmegaConf.to_container(composed, resolve=resolve)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def resolved(composed: DictConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """The composed job with its interpolations resolved. Raises Unresolved, whose message shows no value of theirs."""
    try:
        mapping = mapping_of(composed, resolve=True)
        for section in filter(mapping.__contains__, _HOLD_URIS):
            _refuse_torn_uris(mapping[section], written[section], (section,))
        return mapping
    except OmegaConfBaseException as error:
        if not error.full_key:
            raise
        place = _place(error.full_key)
        raise Unresolved(place, _explain(str(error), _at(written, place), str(written))) from error


def _refuse_torn_uris(value: Any, written: Any, place: Place) -> None:
    """What ends a URI in a text would end it in the middle of a secret, whose rest would then be shown."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_torn_uris(inner, written.get(key) if isinstance(written, dict) else written, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_torn_uris(inner, written[index] if isinstance(written, list) else written, (*place, index))
    elif "${" in str(written) and _is_torn(str(value)):
        raise Unresolved(
            place, f"{written!r} brings white space or a quotation mark into a URI: percent-encode it where it is set"
        )


def _is_torn(uri: str) -> bool:
    """Whether a user or a query goes on behind what ends a URI in a text."""
    rest = uri.partition("://")[2]
    end = _ENDS_A_URI.search(rest)
    return end is not None and ("@" in rest[end.start() :] or "?" in rest[: end.start()])


def _place(full_key: str) -> Place:
    """OmegaConf's `input.parquet[0]` as keys."""
    return tuple(re.findall(r"[^.\[\]]+", full_key))


def _at(written: Any, place: Place) -> str:
    for key in place:
        if isinstance(written, dict):
            written = written.get(key)
        elif isinstance(written, list) and str(key).isdigit():
            written = written[int(key)]
    return str(written)


def _explain(message: str, at_fault: str, job: str) -> str:
    unset, raised = _UNSET.search(message), _RAISED.search(message)
    if unset is not None and f"oc.env:{unset['name']}" in job:
        name = unset["name"]
        return f"the environment has no {name}: set it, or give a default, as ${{oc.env:{name},default}}"
    if "oc.env" in job and "${" in at_fault.replace("${now:", ""):
        # What the environment holds may be a secret, and the message may quote it.
        return f"{at_fault!r} can't be resolved: see whether it is written as ${{oc.env:NAME,default}} is"
    if raised is not None:
        return raised["what"]
    if "key 'now' not found" in message:
        return "write ${now:} for the date, or ${now:%Y-%m-%d} for a format of your own"
    return " ".join(message.split("full_key:")[0].split())
