"""Makes the samples: a tokenizer, a small trained GPT-2, a table of reviews and a list of questions.

    python samples/build.py              # in place
    python samples/build.py --out DIR    # elsewhere

Nothing is downloaded: the text comes from the grammar in this folder. Takes about five minutes of one core.
"""

import argparse
from pathlib import Path

import torch
from bpe import END_OF_TEXT, VOCAB_SIZE, learn_tokenizer, save_tokenizer
from corpus import documents, stray_texts
from tables import write_questions, write_reviews
from tokenizers import Tokenizer
from training import train

from gpt2model import GPT2Config

TRAIN = "train"
NUM_TRAIN = 16_000
NUM_STRAYS = 600
NUM_THREADS = 1
MODEL = "gpt2-tiny"


def build(out: Path) -> None:
    """Writes all samples under `out`."""
    (out / MODEL).mkdir(parents=True, exist_ok=True)
    write_reviews(out / "reviews.parquet")
    write_questions(out / "questions.jsonl")
    texts = train_texts()
    tokenizer = learn_tokenizer(texts)
    config = model_config(tokenizer)
    save_tokenizer(tokenizer, out / MODEL, config.n_positions)
    print(f"learnt {VOCAB_SIZE} tokens from {len(texts)} texts; training takes a few minutes", flush=True)
    model = train(config, [encoding.ids for encoding in tokenizer.encode_batch(texts)])
    model.save_pretrained(out / MODEL)
    print(f"wrote {out}")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: this one)"
    )
    out = parser.parse_args().out
    # The last bits of the weights depend on the order of sums. Steps this small gain little from a second thread.
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    build(out)


if __name__ == "__main__":
    main()
