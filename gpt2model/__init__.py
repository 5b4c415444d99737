"""GPT-2 for inference: a drop-in for Hugging Face transformers' models, with packed inference beside it."""

from gpt2model.auto import AutoGPT2
from gpt2model.cache import DynamicCache, StaticCache
from gpt2model.classifiers import GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2ForTokenClassification
from gpt2model.config import GPT2Config
from gpt2model.generation import Continuation, GenerationConfig, generate_many
from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2model.model import GPT2Model
from gpt2model.packing import Packed, pack, pack_branches
from gpt2model.pretrained import GPT2PreTrainedModel
from gpt2model.quantization import QuantizationConfig
from gpt2model.scoring import continuation_logprobs, token_logprobs
from gpt2model.tokenizer import GPT2Tokenizer

__all__ = [
    "AutoGPT2",
    "Continuation",
    "DynamicCache",
    "GPT2Config",
    "GPT2DoubleHeadsModel",
    "GPT2ForQuestionAnswering",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2PreTrainedModel",
    "GPT2Tokenizer",
    "GenerationConfig",
    "Packed",
    "QuantizationConfig",
    "StaticCache",
    "continuation_logprobs",
    "generate_many",
    "pack",
    "pack_branches",
    "token_logprobs",
]
