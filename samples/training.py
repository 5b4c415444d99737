"""Training of the sample model, a small GPT-2 on the packed corpus, and the optimizer's steps that its heads share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2model import GPT2Config, GPT2LMHeadModel
from gpt2model.pretrained import GPT2PreTrainedModel

SEED = 20
PEAK_LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 100
FINAL_SHARE = 0.02
REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class Phase:
    """A number of steps with batches of one shape."""

    steps: int
    rows: int
    length: int


# Most of the learning happens on short rows, which are cheap; the long ones teach the late positions.
PHASES = (Phase(steps=1200, rows=8, length=128), Phase(steps=1400, rows=2, length=512))


def train(config: GPT2Config, texts: Sequence[Sequence[int]], phases: Sequence[Phase] = PHASES) -> GPT2LMHeadModel:
    """A model of this config, trained on token ids; config.bos_token_id goes before each text."""
    assert config.bos_token_id is not None
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(config)
    optimizer = adamw(model)
    corpus = Stream(texts, config.bos_token_id)
    total = sum(phase.steps for phase in phases)
    batches = (corpus.batch(phase.rows, phase.length) for phase in phases for _ in range(phase.steps))
    losses = list[float]()
    for step, input_ids in enumerate(batches):
        inputs = {"input_ids": input_ids, "labels": input_ids}
        losses.append(descend(model, optimizer, inputs, learning_rate(step, total, PEAK_LEARNING_RATE)))
        if (step + 1) % REPORT_EVERY == 0:
            print(f"step {step + 1} of {total}: loss {sum(losses[-REPORT_EVERY:]) / REPORT_EVERY:.3f}", flush=True)
    return model.eval()


class Stream:
    """The texts in one row of ids, each after the token that begins a text."""

    def __init__(self, texts: Sequence[Sequence[int]], bos_token_id: int) -> None:
        self._ids = torch.tensor([token for text in texts for token in (bos_token_id, *text)])
        self._starts = (self._ids == bos_token_id).nonzero().flatten()

    def batch(self, rows: int, length: int) -> Tensor:
        """Windows of the stream, [rows, length]: half begin with a text, as a text alone does, half anywhere."""
        last = len(self._ids) - length
        beginnings = self._starts[torch.randint(len(self._starts), (rows // 2,))]
        offsets = torch.cat([beginnings, torch.randint(last, (rows - rows // 2,))]).clamp(max=last)
        return self._ids[offsets[:, None] + torch.arange(length)]


def descend(
    model: GPT2PreTrainedModel, optimizer: torch.optim.Optimizer, inputs: Mapping[str, Tensor], rate: float
) -> float:
    """One step down the loss of these inputs, which is returned."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss: Tensor = model(**inputs, use_cache=False).loss
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def adamw(model: GPT2PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW that leaves biases and layer norms without weight decay."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then a cosine from the peak down to FINAL_SHARE of it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / total))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
