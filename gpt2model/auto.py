"""The class that a checkpoint was saved from."""

from __future__ import annotations

import os
from typing import Any

from gpt2model.classifiers import GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2ForTokenClassification
from gpt2model.config import GPT2Config
from gpt2model.errors import ConfigError
from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2model.model import GPT2Model
from gpt2model.pretrained import GPT2PreTrainedModel

ARCHITECTURES: dict[str, type[GPT2PreTrainedModel]] = {
    each.__name__: each
    for each in (
        GPT2Model,
        GPT2LMHeadModel,
        GPT2DoubleHeadsModel,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2ForQuestionAnswering,
    )
}


class AutoGPT2:
    """Loads a checkpoint as the class that its config.json names under `architectures`."""

    @staticmethod
    def class_of(config: GPT2Config) -> type[GPT2PreTrainedModel]:
        """The first architecture of the config that there is a class for; raises ConfigError where there is none."""
        named = config.architectures or ()
        for name in named:
            if name in ARCHITECTURES:
                return ARCHITECTURES[name]
        said = f"names {', '.join(named)}" if named else "names none"
        raise ConfigError(
            f"architectures in config.json {said}: load the checkpoint by the class it was saved from, one of "
            + ", ".join(ARCHITECTURES)
        )

    @staticmethod
    def from_pretrained(path_or_id: str | os.PathLike[str], **options: Any) -> GPT2PreTrainedModel:
        """Load a checkpoint from a folder or the Hub; the options are those of GPT2PreTrainedModel.from_pretrained.

        Raises ConfigError where config.json names no class of GPT-2, and what from_pretrained raises.
        """
        where = ("revision", "cache_dir", "local_files_only", "token")
        config = options.get("config") or GPT2Config.from_pretrained(
            path_or_id, **{name: options[name] for name in where if name in options}
        )
        return AutoGPT2.class_of(config).from_pretrained(path_or_id, **options)
