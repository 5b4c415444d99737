"""Beam search for a group of rows: padded batches of prompts of like length, which `generate` searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2model.generation import GenerationConfig
    from gpt2model.generation.stopping import StopStrings
    from pipeline.batching import Index, PackRunner


@dataclass(frozen=True, slots=True)
class Beam:
    """One text that a search found: its new tokens, up to and with an eos token, and their log-probabilities."""

    token_ids: Ids
    logprobs: npt.NDArray[np.float32] | None


class StopsInText:
    """Ends a beam where its new tokens have a stop string; the engine, too, looks at nothing before them."""

    def __init__(self, stop: StopStrings, longest: int, prompt_places: int) -> None:
        """`longest` is the number of bytes of the longest stop string."""
        self._stop = stop
        self._longest = longest
        self._prompt_places = prompt_places

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Whether a string ends with the newest token of each row of ids, bool [B]."""
        # A token without bytes breaks a string, any other has one byte at least: no string is longer than these.
        start = max(self._prompt_places, ids.shape[1] - self._longest)
        states = self._stop.start(len(ids), ids.device)
        for tokens in ids[:, start:].unbind(dim=1):
            states = self._stop.step(states, tokens)
        return self._stop.found(states)


@dataclass(frozen=True, slots=True)
class Searcher:
    """Beam search by one model under one set of options, whatever the checkpoint's own options are."""

    model: Any
    generation: GenerationConfig
    stop: StopStrings | None
    logprobs: bool

    def search(
        self, prompts: Sequence[Ids], limits: Sequence[int], runner: PackRunner
    ) -> tuple[list[list[Beam]], dict[int, str]]:
        """The best texts behind each prompt, and the prompts that got none, with the reason."""
        found: list[list[Beam]] = [[] for _ in prompts]
        failed: dict[int, str] = {}

        def call(index: Index) -> None:
            for limit in sorted({limits[each] for each in index}):
                chosen = [int(each) for each in index if limits[each] == limit]
                texts, unsound = self._sound([prompts[each] for each in chosen], limit)
                for place, own in zip(chosen, texts, strict=True):
                    found[place] = [Beam(ids, None) for ids in own]
                failed.update({chosen[place]: why for place, why in unsound.items()})

        # What a search holds: all its beams at their full length.
        beams = self.generation.num_beams
        lengths = [beams * (len(prompt) + limit) for prompt, limit in zip(prompts, limits, strict=True)]
        failed.update(runner.run(np.array(lengths, np.int64), call))
        if self.logprobs:
            failed.update(self._score(prompts, found, runner))
        return found, failed

    def _sound(self, prompts: Sequence[Ids], limit: int) -> tuple[list[list[Ids]], dict[int, str]]:
        """The texts of each prompt; none of those after which no token can be chosen, with the reason."""
        from gpt2model.errors import InputError
        from gpt2model.generation.engine import NOT_SOUND

        try:
            return self._search(prompts, limit), {}
        except InputError:
            # One row ends the search of all.
            if len(prompts) == 1:
                return [[]], {0: NOT_SOUND}
        alone = [self._sound([each], limit) for each in prompts]
        return [texts for own, _ in alone for texts in own], {
            place: why for place, (_, unsound) in enumerate(alone) for why in unsound.values()
        }

    def _search(self, prompts: Sequence[Ids], limit: int) -> list[list[Ids]]:
        import torch

        longest = max(map(len, prompts))
        ids = np.stack([np.pad(each, (longest - len(each), 0)) for each in prompts])
        mask = np.stack([np.arange(longest) >= longest - len(each) for each in prompts]).astype(np.int64)
        given = self.generation.replace(max_new_tokens=limit, stop_strings=None, return_dict_in_generate=True)
        record = self.model.generate(
            torch.from_numpy(ids).to(self.model.device),
            given,
            attention_mask=torch.from_numpy(mask).to(self.model.device),
            stopping_criteria=self._stopping(longest),
            # What is None there would be filled from the checkpoint's own options; what is None here is not.
            **{field.name: None for field in fields(given) if getattr(given, field.name) is None},
        )
        new = record.sequences[:, longest:].cpu().numpy()
        # Whatever fills a text up behind its end, it came from no beam.
        lengths = (record.beam_indices >= 0).sum(dim=1).tolist()
        texts = [each[:length] for each, length in zip(new, lengths, strict=True)]
        several = self.generation.num_return_sequences
        return [texts[start : start + several] for start in range(0, len(texts), several)]

    def _stopping(self, prompt_places: int) -> list[StopsInText]:
        if self.stop is None:
            return []
        longest = max(len(each.encode(errors="surrogatepass")) for each in self.generation.stop_strings or ())
        return [StopsInText(self.stop, longest, prompt_places)]

    def _score(self, prompts: Sequence[Ids], found: list[list[Beam]], runner: PackRunner) -> dict[int, str]:
        """Put the log-probabilities in; returns the prompts that device memory can't hold, with the reason."""
        from gpt2model.scoring import continuation_logprobs

        def call(index: Index) -> None:
            own = [[each.token_ids for each in found[place]] for place in index]
            scores = continuation_logprobs(self.model, [prompts[each] for each in index], own)
            for place, scored in zip(index, scores, strict=True):
                found[place] = [
                    Beam(each.token_ids, own_scores.numpy())
                    for each, own_scores in zip(found[place], scored, strict=True)
                ]

        lengths = [
            len(prompt) + sum(len(each.token_ids) for each in own) for prompt, own in zip(prompts, found, strict=True)
        ]
        return runner.run(np.array(lengths, np.int64), call)
