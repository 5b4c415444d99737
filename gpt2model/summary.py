"""One vector for a whole sequence, as the multiple-choice head takes it.

Shapes: B any leading dimensions, L positions, T tokens of a pack, N sequences or branches, D width, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2model.config import GPT2Config
from gpt2model.errors import ConfigError, InputError
from gpt2model.layers import activation
from gpt2model.model import check_ids
from gpt2model.packing import Packed


class GPT2SequenceSummary(nn.Module):
    """Hidden states [B, L, D] -> [B, K]: one position or the mean, then projection, activation and dropouts.

    summary_type says what is taken: "cls_index" (a given position, the last by default), "last", "first" or "mean". K
    is num_labels with summary_use_proj and summary_proj_to_labels, else D. Raises ConfigError for summary_type "attn",
    which transformers has no implementation of either.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        if config.summary_type == "attn":
            raise ConfigError("summary_type='attn' is implemented nowhere: take cls_index, last, first or mean")
        self.summary_type = config.summary_type
        self.summary: nn.Module = nn.Identity()
        if config.summary_use_proj:
            self.summary = nn.Linear(
                config.n_embd, config.num_labels if config.summary_proj_to_labels else config.n_embd
            )
        self.activation = (
            activation(config.summary_activation, "summary_activation") if config.summary_activation else nn.Identity()
        )
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.last_dropout = nn.Dropout(config.summary_last_dropout)

    def forward(self, hidden: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """[B, L, D] and positions [B] (read with summary_type "cls_index" alone) -> [B, K]."""
        return self._projected(self._taken(hidden, cls_index))

    def of_packed(self, hidden: Tensor, packed: Packed) -> Tensor:
        """[T, D] -> [N, K], for every branch, or every sequence where the pack has no branches; all count from 0."""
        heads, lasts = packed.ends()
        if self.summary_type == "first":
            return self._projected(hidden[heads])
        if self.summary_type == "mean":
            return self._projected(packed.means(hidden))
        return self._projected(hidden[lasts])

    def _taken(self, hidden: Tensor, cls_index: Tensor | None) -> Tensor:
        if self.summary_type == "mean":
            return hidden.mean(dim=-2)
        if self.summary_type == "first":
            return hidden[..., 0, :]
        if self.summary_type == "last" or cls_index is None:
            return hidden[..., -1, :]
        if cls_index.shape != hidden.shape[:-2]:
            raise InputError(
                f"mc_token_ids of shape {tuple(cls_index.shape)}: one position for each of {tuple(hidden.shape[:-2])}"
            )
        check_ids(cls_index, hidden.shape[-2], "mc_token_ids", "the input's length")
        places = cls_index.to(hidden.device, torch.int64)[..., None, None]
        return hidden.take_along_dim(places, dim=-2).squeeze(-2)

    def _projected(self, taken: Tensor) -> Tensor:
        summed: Tensor = self.last_dropout(self.activation(self.summary(self.first_dropout(taken))))
        return summed
