"""From prompts to continuations: options, scores, search, and the engine for many rows."""
