"""Transition scores where transformers cannot tell: wrong calls, rows filled with what is no token."""

from typing import Any

import pytest
import torch

from gpt2model.errors import InputError
from gpt2model.generation.transitions import compute_transition_scores
from tests.gpt2model.generation.alike import RECORD, models, prompts


def test_a_score_is_that_of_the_token_in_the_row_it_was_chosen_from() -> None:
    scores = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    sequences = torch.tensor([[9, 0, 1], [9, 1, 0]])
    assert compute_transition_scores(sequences, scores).tolist() == [[1.0, 6.0], [4.0, 7.0]]
    beams = torch.tensor([[1, 0], [0, -1]], dtype=torch.int32)
    assert compute_transition_scores(sequences, scores, beams).tolist() == [[3.0, 6.0], [2.0, 0.0]]
    normalized = compute_transition_scores(sequences, scores, normalize_logits=True)
    torch.testing.assert_close(normalized[0, 0], torch.tensor([1.0, 2.0]).log_softmax(dim=0)[0])


def test_behind_an_end_there_may_be_no_token() -> None:
    scores, beams = (torch.tensor([[1.0, 2.0]]),) * 2, torch.tensor([[0, -1], [0, 0]])
    assert compute_transition_scores(torch.tensor([[0, -1], [0, 1]]), scores, beams).tolist() == [
        [1.0, 0.0],
        [1.0, 2.0],
    ]


@pytest.mark.parametrize("beams", [1, 3])
def test_log_probabilities_are_those_of_the_model(beams: int) -> None:
    model, _ = models()
    given = prompts("none")
    record = model.generate(**given, num_beams=beams, max_new_tokens=4, eos_token_id=None, **RECORD)
    found = model.compute_transition_scores(
        record.sequences, record.scores, getattr(record, "beam_indices", None), normalize_logits=True
    )
    with torch.no_grad():
        logits = model(record.sequences[:, :-1]).logits[:, -4:]
    expected = logits.log_softmax(dim=-1).gather(2, record.sequences[:, -4:, None])[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"scores": ()}, ["output_scores=True"]),
        ({"sequences": torch.zeros(3, 5, dtype=torch.int64)}, ["(3, 5)", "2 rows"]),
        ({"sequences": torch.zeros(2, 1, dtype=torch.int64)}, ["(2, 1)", "2 new tokens"]),
        ({"beam_indices": torch.tensor([[0, 2], [0, 0]])}, ["beam_indices"]),
        ({"beam_indices": torch.zeros(2, 3, dtype=torch.int64)}, ["3 new tokens", "2 steps"]),
    ],
    ids=str,
)
def test_what_is_not_of_one_call_is_refused(call: dict[str, Any], words: list[str]) -> None:
    given: dict[str, Any] = {"sequences": torch.zeros(2, 5, dtype=torch.int64), "scores": (torch.zeros(2, 4),) * 2}
    with pytest.raises(InputError) as raised:
        compute_transition_scores(**{**given, **call})
    assert [word for word in words if word not in str(raised.value)] == []
