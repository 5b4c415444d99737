"""What every model shares: config, checkpoints, embeddings."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn

from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.layers import Conv1D, LanguageModelHead
from gpt2model.outputs import ModelOutput

if TYPE_CHECKING:
    from gpt2model.attention import AttentionImplementation
    from gpt2model.checkpoint import LoadOptions
    from gpt2model.generation.config import GenerationConfig
    from gpt2model.model import GPT2Model

OutputT = TypeVar("OutputT", bound=ModelOutput)


class GPT2PreTrainedModel(nn.Module):
    """Base of the models: config, checkpoints, embeddings.

    A model comes out of its constructor in training mode with GPT-2's random weights, and out of from_pretrained in
    evaluation mode. `config` is never written to: a change replaces it.
    """

    base_model_prefix: ClassVar[str] = "transformer"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self._generation: GenerationConfig | Path | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """The options that `generate` goes by, of the models that have it: the checkpoint's own; a change replaces it.

        Read when they are first asked for: what a file says of generation is no reason not to score with its model.
        Raises ConfigError for a file, or a model's config, that holds impossible options.
        """
        from gpt2model.generation.config import GenerationConfig

        if self._generation is None:
            self._generation = GenerationConfig.from_model_config(self.config)
        elif not isinstance(self._generation, GenerationConfig):
            self._generation = GenerationConfig.from_json_file(self._generation)
        return self._generation

    @generation_config.setter
    def generation_config(self, options: GenerationConfig | Path) -> None:
        self._generation = options

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights that are floating-point numbers."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def base_model(self) -> GPT2Model:
        """The GPT2Model inside, or the model itself."""
        return cast("GPT2Model", getattr(self, self.base_model_prefix, self))

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        attn_implementation: AttentionImplementation = "sdpa",
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load a checkpoint from a folder or the Hub; see gpt2model.checkpoint.load_checkpoint and LoadOptions."""
        from gpt2model.checkpoint import load_checkpoint  # checkpoint.py imports the models

        return load_checkpoint(cls, path_or_id, device=device, attn_implementation=attn_implementation, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: str | int = "50GB") -> None:
        """Write config.json and the weights as safetensors; see gpt2model.checkpoint.save_checkpoint."""
        from gpt2model.checkpoint import save_checkpoint

        save_checkpoint(self, folder, max_shard_size=max_shard_size)

    def as_asked(self, output: OutputT, return_dict: bool | None) -> OutputT | tuple[Any, ...]:
        """A record as it is, or as a tuple where `return_dict`, or else the config, says so."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def prepack(self, *, head: bool = False) -> Self:
        """Hold the blocks' weights in the layout that products on this processor read fastest; the values are rounded
        otherwise then.

        For a model that only computes from now on. Its weights are then empty in parameters() and whole in
        state_dict(); training mode, or a move to another device or dtype, puts them back. ``head`` keeps a copy of the
        language-model head's weight in that layout too, for generate_many. Does nothing where oneDNN does not compute
        the products (see gpt2model.onednn). Raises InputError in training mode.
        """
        if self.training:
            raise InputError("prepack() of a model in training mode: call eval() first")
        for module in self.modules():
            if isinstance(module, Conv1D):
                module.prepack()
        if head and isinstance(language_model := self.get_output_embeddings(), LanguageModelHead):
            language_model.prepack()
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew in GPT-2's scheme (Radford et al., 2019, section 2.3).

        Matrices are normal with deviation initializer_range, those that write to the residual stream by 1/sqrt(2 *
        n_layer) narrower; biases are 0, layer norms the identity.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, (Conv1D, nn.Embedding, nn.Linear)):
                if isinstance(module, Conv1D):
                    module.unpack()
                if module.weight.is_meta:  # nothing to draw, and for that torch would import its compiler: seconds
                    continue
                narrower = math.sqrt(2 * self.config.n_layer) if name.endswith(".c_proj") else 1.0
                nn.init.normal_(module.weight, std=self.config.initializer_range / narrower)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    nn.init.zeros_(bias)
        self.tie_weights()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, [V, D]."""
        return self.base_model.wte

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        """Put another token embedding in place; a tied head follows."""
        self.base_model.wte = embedding
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The language-model head, where there is one."""
        return None

    def tie_weights(self) -> None:
        """Let the language-model head use the token embedding's weight, where the config ties them."""
        head = self.get_output_embeddings()
        if isinstance(head, LanguageModelHead):
            head.unpack()
        if head is not None and self.config.tie_word_embeddings:
            head.weight = self.get_input_embeddings().weight
            head.out_features = head.weight.shape[0]

    def resize_token_embeddings(self, new_num_tokens: int, pad_to_multiple_of: int | None = None) -> nn.Embedding:
        """Make the vocabulary `new_num_tokens` long, rounded up to a multiple if one is given; returns the embedding.

        Rows that stay keep their values; new ones are normal with deviation initializer_range. The head follows. Raises
        InputError for a length or a multiple below 1.
        """
        size = new_num_tokens
        if pad_to_multiple_of is not None:
            if not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1:
                raise InputError(f"pad_to_multiple_of={pad_to_multiple_of!r}: give a whole number of 1 or more")
            size = math.ceil(size / pad_to_multiple_of) * pad_to_multiple_of
        if size < 1:
            raise InputError(f"resize_token_embeddings({new_num_tokens}): a vocabulary has at least one entry")
        base, head = self.base_model, self.get_output_embeddings()
        base.wte.weight = self._resized(base.wte.weight, size)
        base.wte.num_embeddings = size
        if head is not None and not self.config.tie_word_embeddings:
            head.weight = self._resized(head.weight, size)
            head.out_features = size
        self.config = base.config = self.config.replace(vocab_size=size)
        self.tie_weights()
        return base.wte

    @torch.no_grad()
    def _resized(self, weight: Tensor, size: int) -> nn.Parameter:
        rows = weight.new_empty(size, weight.shape[1])
        kept = min(size, weight.shape[0])
        rows[:kept] = weight[:kept]
        rows[kept:].normal_(std=self.config.initializer_range)
        return nn.Parameter(rows, requires_grad=weight.requires_grad)
