"""GPT-2 for inference: a drop-in for Hugging Face transformers' models, with packed scoring beside it."""

from gpt2model.cache import DynamicCache, StaticCache
from gpt2model.config import GPT2Config
from gpt2model.heads import GPT2LMHeadModel
from gpt2model.model import GPT2Model, GPT2PreTrainedModel
from gpt2model.packing import Packed, pack
from gpt2model.scoring import token_logprobs
from gpt2model.tokenizer import GPT2Tokenizer

__all__ = [
    "DynamicCache",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2PreTrainedModel",
    "GPT2Tokenizer",
    "Packed",
    "StaticCache",
    "pack",
    "token_logprobs",
]
