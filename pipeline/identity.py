"""Whether the run that a folder holds is the one that is wanted, and what differs where it is another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import OutputRefused


def refuse_other_run(folder: str, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise OutputRefused, naming the differences, where `held` is not the identity that is wanted."""
    refuse_other_mode(folder, held, _mode(wanted))
    differences = list(_differences(held, wanted))
    if differences:
        raise OutputRefused(_refusal(folder, differences))


def refuse_other_mode(folder: str, held: Mapping[str, Any], mode: str) -> None:
    """Raise OutputRefused where the run with the identity `held` is not of that output.mode."""
    if _mode(held) != mode:
        raise OutputRefused(
            f"output.path {folder} was begun with output.mode={_mode(held)} and can't be gone on with as {mode}: "
            f"give output.mode={_mode(held)}, or a new output.path"
        )


def _mode(identity: Mapping[str, Any]) -> str:
    return str(identity.get("output", {}).get("mode", "once"))


def _differences(held: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """What differs between two identities, key by key."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*held, *wanted]):
            yield from _differences(held.get(name), wanted.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        for place, (one, other) in enumerate(zip(held, wanted, strict=True)):
            yield from _differences(one, other, f"{key}[{place}]")
    elif held != wanted:
        yield f"{key} was {held!r} and is {wanted!r}"


def _refusal(folder: str, differences: list[str]) -> str:
    more = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
    grown = any(each.startswith("input.splits") for each in differences)
    follows = " (with output.mode=incremental it would follow an input that grows)" if grown else ""
    return (
        f"output.path {folder} holds another run: {'; '.join(differences[:5])}{more}. "
        f"Run with the options it was begun with, or give a new output.path{follows}"
    )


def tasks_of(identity: Mapping[str, Any]) -> str | None:
    """The task of a run, or those of its steps; None where the identity names none."""
    steps = identity.get("steps", {})
    return ", ".join(steps[name]["task"] for name in identity.get("order", [])) if steps else identity.get("task")
