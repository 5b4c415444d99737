"""Whether all heads say on a device what transformers' say there, in every dtype, padded and packed.

In half precision two right answers differ: so each is also held against transformers' in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_setting import Case, Row, Setting, padded, short
from gpt2model import GPT2Config, pack

Ids = list[Any]
HEADS = (
    "GPT2LMHeadModel",
    "GPT2DoubleHeadsModel",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2ForQuestionAnswering",
)
LENGTHS = (1.0, 1.0, 0.6, 0.31, 0.3, 0.17, 0.05, 0.01)
"""Of eight rows, as shares of the longest."""


def cases(setting: Setting) -> Iterator[Case]:
    """Every head of the small model, then the language model of the large one."""
    for dtype in setting.dtypes:
        for name in HEADS:
            yield Case(f"{name}, {short(dtype)}", partial(head, setting, setting.small, name, dtype))
    for size, config in list(setting.configs.items())[1:]:
        for dtype in setting.dtypes:
            yield Case(f"{size}, {short(dtype)}", partial(head, setting, config, "GPT2LMHeadModel", dtype))


@torch.inference_mode()
def head(setting: Setting, config: GPT2Config, name: str, dtype: torch.dtype) -> list[Row]:
    """One row for each way to give the sequences: padded at the right, at the left, packed."""
    model = setting.ours(config, torch.float32, name)
    sequences = draw(config, most=256)
    sides = {"padded right": False, "padded left": True}
    if name == "GPT2DoubleHeadsModel":
        del sides["padded left"]  # its choices are read at the last position
    exact = {side: real(setting.theirs(model), sequences, setting, left) for side, left in sides.items()}
    model = model.to(dtype)
    peer = setting.theirs(model)
    rows = []
    for side, left in sides.items():
        wanted = real(peer, sequences, setting, left)
        rows.append({"given": side, **compared(real(model, sequences, setting, left), wanted, exact[side])})
    if packed := PACKED.get(name):
        found = packed(model, pack(sequences).to(setting.device)).float()
        wanted, truth = real(peer, sequences, setting, False), exact["padded right"]
        rows.append({"given": "packed", **compared(found, wanted, truth)})
    return rows


def draw(config: GPT2Config, most: int) -> Ids:
    """Eight sequences of random tokens, `most` at most or what the context holds."""
    random, longest = np.random.default_rng(0), min(most, config.n_positions - 1)
    return [random.integers(1, config.vocab_size - 1, max(1, int(share * longest))) for share in LENGTHS]


PACKED: dict[str, Callable[[Any, Any], Tensor]] = {
    "GPT2LMHeadModel": lambda model, packed: model.lm_head(model.transformer.forward_packed(packed)),
    "GPT2ForSequenceClassification": lambda model, packed: model.forward_packed(packed),
    "GPT2ForTokenClassification": lambda model, packed: model.forward_packed(packed),
    "GPT2ForQuestionAnswering": lambda model, packed: model.forward_packed(packed),
}


def real(model: Any, sequences: Ids, setting: Setting, left: bool) -> Tensor:
    """Float32 outputs [outputs, K] of either library's model, at the positions that are no padding."""
    ids, mask = padded(sequences, setting.device, left=left)
    name = type(model).__name__
    if name == "GPT2ForSequenceClassification":
        # transformers takes what is the pad id for padding.
        ids = torch.where(mask.bool(), ids, model.config.pad_token_id)
    if name == "GPT2DoubleHeadsModel":
        return choices(model, ids, mask)
    outputs = model(ids, attention_mask=mask)
    if name == "GPT2ForQuestionAnswering":
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)[mask.bool()].float()
    found: Tensor = outputs.logits if outputs.logits.ndim == 2 else outputs.logits[mask.bool()]
    return found.float()


def choices(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The choice logits of pairs of rows, each at its own last token, as [B, 1]."""
    pairs = (len(ids) // 2, 2)
    lasts = (mask.sum(dim=1) - 1).view(pairs)
    outputs = model(ids.view(*pairs, -1), attention_mask=mask.view(*pairs, -1), mc_token_ids=lasts)
    found: Tensor = outputs.mc_logits.reshape(-1, 1).float()
    return found


def compared(found: Tensor, wanted: Tensor, exact: Tensor) -> Row:
    """Greatest differences as shares of the greatest value, and how often the greatest of a row is the same."""
    greatest = float(exact.abs().max())
    apart = {
        "ours from theirs": found - wanted,
        "ours from float32": found - exact,
        "theirs from float32": wanted - exact,
    }
    return {
        **{name: float(each.abs().max()) / greatest for name, each in apart.items()},
        "same argmax": same_argmax(found, wanted),
        "ours as float32": same_argmax(found, exact),
        "theirs as float32": same_argmax(wanted, exact),
        "finite": bool(found.isfinite().all()),
    }


def same_argmax(one: Tensor, other: Tensor) -> float:
    """Share of the rows whose greatest value is at the same place; of one column, the place is the row's."""
    dim = -1 if one.shape[-1] > 1 else 0
    return float((one.argmax(dim) == other.argmax(dim)).float().mean())
