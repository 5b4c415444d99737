"""What each sample head is taught: documents into labelled examples."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from corpus import NOTE, TOPICS, Document
from head_training import SEED, Example, tune
from narrator import Entity
from quiz import ask
from tokenizers import Encoding, Tokenizer

from gpt2model import GPT2Config, GPT2LMHeadModel
from gpt2model.classifiers import GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2ForTokenClassification

TOPIC_LABELS = (*TOPICS, NOTE)
KIND_TAGS = {"person": "PER", "place": "LOC", "organisation": "ORG"}
OUTSIDE = "O"
TAG_LABELS = (OUTSIDE, *(f"{prefix}-{tag}" for tag in KIND_TAGS.values() for prefix in "BI"))
QUESTIONS_PER_DOCUMENT = 2
# In SQuAD 2's convention the answer of a question without one is the first token.
NO_ANSWER = (0, 0)

HeadModel = GPT2ForSequenceClassification | GPT2ForTokenClassification | GPT2ForQuestionAnswering
Examples = Callable[[Tokenizer, Iterable[Document], int], Iterator[Example]]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A head: its model class, its labels (none for a head without), its examples and how often they are seen."""

    model_class: Callable[[GPT2Config], HeadModel]
    labels: tuple[str, ...]
    examples: Examples
    epochs: int


def teach(base: GPT2LMHeadModel, tokenizer: Tokenizer, lesson: Lesson, documents: Iterable[Document]) -> HeadModel:
    """A model with a head of this lesson, tuned from the base on these documents."""
    torch.manual_seed(SEED)
    config = base.config.replace(id2label=dict(enumerate(lesson.labels))) if lesson.labels else base.config
    model = lesson.model_class(config)
    model.transformer.load_state_dict(base.transformer.state_dict())
    tune(model, list(lesson.examples(tokenizer, documents, config.n_positions)), lesson.epochs)
    return model


def topic_examples(tokenizer: Tokenizer, documents: Iterable[Document], max_length: int) -> Iterator[Example]:
    """Texts, cut at the end, and their topics."""
    for document in documents:
        input_ids = tokenizer.encode(document.text).ids[:max_length]
        yield Example(tuple(input_ids), {"labels": TOPIC_LABELS.index(document.topic)})


def tag_examples(tokenizer: Tokenizer, documents: Iterable[Document], max_length: int) -> Iterator[Example]:
    """Texts, cut at the end, and a tag for each token: in IOB2 over tokens, all tokens of a name have its kind."""
    for document in documents:
        encoding = tokenizer.encode(document.text)
        tags = [TAG_LABELS.index(OUTSIDE)] * len(encoding)
        for name in document.entities:
            first, last = token_span(encoding, name)
            tag = KIND_TAGS[name.kind]
            tags[first] = TAG_LABELS.index(f"B-{tag}")
            tags[first + 1 : last + 1] = [TAG_LABELS.index(f"I-{tag}")] * (last - first)
        yield Example(tuple(encoding.ids[:max_length]), {"labels": tuple(tags[:max_length])})


def answer_examples(tokenizer: Tokenizer, documents: Iterable[Document], max_length: int) -> Iterator[Example]:
    """Questions with a text behind, cut at the end, and the first and last token of the answer."""
    for number, document in enumerate(documents):
        context = tokenizer.encode(document.text)
        rng = random.Random(f"question {number}")
        for _ in range(QUESTIONS_PER_DOCUMENT):
            question = ask(document, rng)
            asked = tokenizer.encode(question.text).ids
            first, last = NO_ANSWER
            if question.answer is not None:
                first, last = (len(asked) + position for position in token_span(context, question.answer))
            if last >= max_length:
                first, last = NO_ANSWER
            yield Example(tuple((asked + context.ids)[:max_length]), {"start_positions": first, "end_positions": last})


def token_span(encoding: Encoding, name: Entity) -> tuple[int, int]:
    """The first and the last token of a name in a text."""
    first, last = encoding.char_to_token(name.start), encoding.char_to_token(name.end - 1)
    assert first is not None
    assert last is not None
    return first, last


LESSONS = {
    "gpt2-tiny-topic": Lesson(GPT2ForSequenceClassification, TOPIC_LABELS, topic_examples, epochs=1),
    "gpt2-tiny-ner": Lesson(GPT2ForTokenClassification, TAG_LABELS, tag_examples, epochs=2),
    "gpt2-tiny-qa": Lesson(GPT2ForQuestionAnswering, (), answer_examples, epochs=1),
}
