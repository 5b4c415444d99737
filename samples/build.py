"""Makes the samples: tables, a tokenizer, a small trained GPT-2, and heads tuned from it.

    python samples/build.py                 # in place
    python samples/build.py --out DIR       # elsewhere
    python samples/build.py --only heads    # one stage: tables, model, or heads from a model that is there

Nothing is downloaded: the text comes from the grammar in this folder. Takes about fifteen minutes of one core.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from bpe import END_OF_TEXT, VOCAB_SIZE, learn_tokenizer, save_tokenizer
from corpus import documents, stray_texts
from lessons import LESSONS, teach
from tables import write_choices, write_questions, write_quiz, write_reviews
from tokenizers import Tokenizer
from training import train

from gpt2model import GPT2Config, GPT2LMHeadModel

TRAIN = "train"
NUM_TRAIN = 16_000
NUM_STRAYS = 600
NUM_THREADS = 1
MODEL = "gpt2-tiny"


def build(out: Path, stages: Iterable[str]) -> None:
    """Writes these stages of the samples under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        STAGES[stage](out)
    print(f"wrote {out}")


def build_tables(out: Path) -> None:
    write_reviews(out / "reviews.parquet")
    write_questions(out / "questions.jsonl")
    write_quiz(out / "quiz.parquet")
    write_choices(out / "choices.parquet")


def build_model(out: Path) -> None:
    """The tokenizer and the language model."""
    texts = train_texts()
    tokenizer = learn_tokenizer(texts)
    config = model_config(tokenizer)
    (out / MODEL).mkdir(exist_ok=True)
    save_tokenizer(tokenizer, out / MODEL, config.n_positions)
    print(f"learnt {VOCAB_SIZE} tokens from {len(texts)} texts; training takes a few minutes", flush=True)
    model = train(config, [encoding.ids for encoding in tokenizer.encode_batch(texts)])
    model.save_pretrained(out / MODEL)


def build_heads(out: Path) -> None:
    """The heads, each in a folder of its own, from the model under `out`."""
    base = GPT2LMHeadModel.from_pretrained(out / MODEL)
    tokenizer = Tokenizer.from_file(str(out / MODEL / "tokenizer.json"))
    told = list(documents(TRAIN, NUM_TRAIN))
    for name, lesson in LESSONS.items():
        print(f"training {name}", flush=True)
        model = teach(base, tokenizer, lesson, told)
        # Half precision halves the files and does not change an answer.
        model.half().save_pretrained(out / name)
        save_tokenizer(tokenizer, out / name, base.config.n_positions)


def train_texts() -> list[str]:
    """What the tokenizer and the model learn from."""
    told = [document.text for document in documents(TRAIN, NUM_TRAIN)]
    return [*told, *stray_texts(TRAIN, NUM_STRAYS)]


def model_config(tokenizer: Tokenizer) -> GPT2Config:
    """1.1 million parameters, 4.5 MB; no dropout, as no text is seen more than a few times."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    return GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=512,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


STAGES: dict[str, Callable[[Path], None]] = {"tables": build_tables, "model": build_model, "heads": build_heads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: this one)"
    )
    parser.add_argument("--only", choices=STAGES, help="the one stage to make (default: all)")
    arguments = parser.parse_args()
    # The last bits of the weights depend on the order of sums. Steps this small gain little from a second thread.
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    build(arguments.out, [arguments.only] if arguments.only else STAGES)


if __name__ == "__main__":
    main()
