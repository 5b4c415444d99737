"""The sample tokenizer: byte-level BPE after GPT-2's conventions, learnt from the sample corpus."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 2048
END_OF_TEXT = "<|endoftext|>"


def learn_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` tokens: all 256 bytes, merges, and `<|endoftext|>` last, as in GPT-2."""
    learner = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 1, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: VOCAB_SIZE - 1}
    tokenizer = _byte_level(models.BPE(vocab, [(left, right) for left, right in model["merges"]]))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes `tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    config = {"add_prefix_space": False, **specials, "model_max_length": max_length, "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
