"""Ask the original model code the fresh questions of the tests, and record its answers.

    pip install -r tools/demo/requirements.txt
    python tools/vision_reference.py [--questions 400] [--out tests/golden/demo_accuracy.json]

The package must be installed too. Runs the demo checkpoint in float32 with transformers on torch. `--digits`
draws the strip of digits anew instead, in Pillow's default font.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer
from transformers import Qwen3_5ForConditionalGeneration

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "tools" / "demo" / "checkpoint"
sys.path.insert(0, str(ROOT / "tests" / "python"))

import fresh_questions  # noqa: E402
from demo.batch import collate, encode, media_arguments  # noqa: E402
from demo.data import Sample  # noqa: E402

BATCH = 50
LONGEST_ANSWER = 24
FONT_SIZE = 44


def as_sample(kind: str, question: fresh_questions.Question) -> Sample:
    return Sample(kind, question.text, question.truth, [np.asarray(frame) for frame in question.frames])


class Original:
    """The original model code with the demo checkpoint."""

    def __init__(self) -> None:
        self.model = Qwen3_5ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))

    @torch.no_grad()
    def answer(self, samples: list[Sample]) -> list[str]:
        """What it says, greedily. True answers are recognised in one pass, others continued token by token.

        Greedy decoding gives the true answer if each token chosen behind a part of it is the next one.
        """
        batch = collate(self.tokenizer, samples)
        hidden = self.model.model(input_ids=batch.ids, use_cache=False, **batch.media).last_hidden_state
        chosen = self.model.lm_head(hidden[:, :-1]).argmax(-1)
        as_true = ((chosen == batch.ids[:, 1:]) | ~batch.answer[:, 1:]).all(dim=1).tolist()
        return [
            sample.answer if true else self.continuation(sample)
            for sample, true in zip(samples, as_true, strict=True)
        ]

    def continuation(self, sample: Sample) -> str:
        ids, length = encode(self.tokenizer, sample)
        ids = torch.tensor([ids[:length]])
        end = self.tokenizer.token_to_id("<|im_end|>")
        for _ in range(LONGEST_ANSWER):
            media = media_arguments(self.tokenizer, [sample], ids)
            hidden = self.model.model(input_ids=ids, use_cache=False, **media).last_hidden_state
            ids = torch.cat([ids, self.model.lm_head(hidden[:, -1]).argmax(-1)[:, None]], dim=1)
            if ids[0, -1] == end:
                break
        return self.tokenizer.decode(ids[0, length:].tolist())


def record(questions: int) -> dict[str, object]:
    original = Original()
    kinds = {}
    for kind in fresh_questions.KINDS:
        asked = [fresh_questions.ask(kind, index) for index in range(questions)]
        samples = [as_sample(kind, question) for question in asked]
        answers = [
            text
            for first in range(0, questions, BATCH)
            for text in original.answer(samples[first : first + BATCH])
        ]
        right = sum(text == question.truth for text, question in zip(answers, asked, strict=True))
        print(f"{kind}: {right} of {questions}")
        kinds[kind] = {
            "right": right,
            "fingerprint": fresh_questions.fingerprint(asked),
            "answers": answers,
        }
    versions = {module.__name__: module.__version__ for module in (transformers, torch, PIL)}
    return {"seed": fresh_questions.SEED, "versions": versions, "kinds": kinds}


def draw_digits(path: Path) -> None:
    """Digits 0 to 9 side by side, as wide as they stand in a number, white on black."""
    font = ImageFont.load_default(size=FONT_SIZE)
    left, top, right, bottom = map(int, font.getbbox("0123456789"))
    strip = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(strip).text((-left, -top), "0123456789", font=font, fill=255)
    strip.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--questions", type=int, default=400, help="how many of each kind")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "demo_accuracy.json")
    parser.add_argument("--digits", action="store_true", help="draw the strip of digits, nothing else")
    options = parser.parse_args()
    if options.digits:
        draw_digits(fresh_questions.DIGITS_FILE)
    else:
        text = json.dumps(record(options.questions), indent=1, ensure_ascii=False)
        options.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
