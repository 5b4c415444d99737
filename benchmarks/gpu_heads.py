"""Speed of classifying, tagging and embedding on a device, from token ids to numbers, against transformers' models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_scoring import BATCHES, told
from benchmarks.gpu_setting import Case, Row, Setting, batches_of, packs_of, padded, quickest, short
from benchmarks.workloads import Scoring, lognormal_texts
from gpt2model import Packed, pack

ROWS, PEER_ROWS = 2048, 1024


def cases(setting: Setting) -> Iterator[Case]:
    """What the tasks read of the small model."""
    for dtype in setting.halves[:1] + setting.dtypes[:1]:
        for name in OURS:
            yield Case(f"{name}, {short(dtype)}", partial(speed, setting, name, dtype))


def last_states(model: Any, packed: Packed) -> Tensor:
    _, lasts = packed.ends()
    states: Tensor = model.forward_packed(packed)[lasts]
    return states


def mean_states(model: Any, packed: Packed) -> Tensor:
    return packed.means(model.forward_packed(packed))


def logits(model: Any, packed: Packed) -> Tensor:
    found: Tensor = model.forward_packed(packed)
    return found


OURS: dict[str, tuple[str, Callable[[Any, Packed], Tensor]]] = {
    "classify": ("GPT2ForSequenceClassification", logits),
    "ner": ("GPT2ForTokenClassification", logits),
    "embed by the last token": ("GPT2Model", last_states),
    "embed by the mean": ("GPT2Model", mean_states),
}


@torch.inference_mode()
def speed(setting: Setting, name: str, dtype: torch.dtype) -> list[Row]:
    """Ours in packs, theirs at its best batch size over rows sorted by length; results come to the host."""
    config, (head, way) = setting.small, OURS[name]
    work = lognormal_texts(config, setting.rows(ROWS))
    some = work.first(setting.rows(PEER_ROWS))
    model = setting.ours(config, dtype, head)
    rate = setting.matrix_rate(dtype)

    def ours(texts: Scoring) -> None:
        found = [
            way(model, pack(chosen).to(setting.device)).float()
            for chosen in packs_of([ids[:-1] for ids in texts.sequences])
        ]
        torch.cat(found).cpu()

    peer = setting.theirs(model)

    def theirs(batch: int) -> None:
        torch.cat(
            [pooled(name, peer, setting, ids) for ids in batches_of([i[:-1] for i in some.sequences], batch)]
        ).cpu()

    best, took = quickest(BATCHES, lambda batch: setting.seconds(partial(theirs, batch)))
    other = told(setting, config, f"transformers, batches of {best}", some, rate, partial(theirs, best), head=False)
    other["tokens/s by batch"] = {batch: round(some.tokens / each) for batch, each in took.items()}
    return [told(setting, config, "ours", work, rate, partial(ours, work), head=False), other]


def pooled(name: str, peer: Any, setting: Setting, sequences: list[Any]) -> Tensor:
    """What a user of transformers' model takes of a padded batch: logits, or one vector a row."""
    ids, mask = padded(sequences, setting.device)
    if name == "classify":
        ids = torch.where(mask.bool(), ids, peer.config.pad_token_id)
    outputs = peer(ids, attention_mask=mask, use_cache=False)
    if name == "classify":
        return outputs.logits.float()  # type: ignore[no-any-return]
    if name == "ner":
        return outputs.logits[mask.bool()].float()  # type: ignore[no-any-return]
    hidden = outputs.last_hidden_state
    if name == "embed by the last token":
        return hidden[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1].float()  # type: ignore[no-any-return]
    return (hidden.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)  # type: ignore[no-any-return]
