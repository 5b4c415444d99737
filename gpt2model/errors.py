"""What gpt2model raises.

    GPT2Error
    ├── ConfigError            a config option or a config.json that cannot be (also a ValueError)
    ├── CheckpointError        a folder, a Hub repository or a weights file that cannot be read
    │   └── WeightsMismatch    weights that are missing, unexpected or of another shape
    ├── TokenizerError         tokenizer files or a text that cannot be encoded (also a ValueError)
    └── InputError             arguments of a call that contradict each other or the config (also a ValueError)

Every message names the value, the place and the remedy.
"""


class GPT2Error(Exception):
    """Root of everything gpt2model raises on purpose."""


class ConfigError(GPT2Error, ValueError):
    """A config option, or a config.json, that cannot be."""


class CheckpointError(GPT2Error):
    """A folder, a Hub repository or a weights file that cannot be read."""


class WeightsMismatch(CheckpointError):
    """Weights that are missing, unexpected or of another shape than the config says."""


class TokenizerError(GPT2Error, ValueError):
    """Tokenizer files that cannot be read, or a text that cannot be encoded."""


class InputError(GPT2Error, ValueError):
    """Arguments of a call, of forward or generate, that contradict each other or the config."""
