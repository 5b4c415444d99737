"""From prompts to continuations: options, scores, search, and the engine for many rows."""

from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.engine import Engine
from gpt2model.generation.many import generate_many
from gpt2model.generation.requests import Continuation, Prefix, Request, share_prefixes

__all__ = [
    "Continuation",
    "Engine",
    "GenerationConfig",
    "Prefix",
    "Request",
    "generate_many",
    "share_prefixes",
]
