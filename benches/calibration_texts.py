"""Texts for `benches/calibration.py`, from what is installed: nothing is downloaded.

    python benches/calibration_texts.py FOLDER

- `python.txt`: Python's language reference, as its `help()` shows it.
- `dialogues.txt`: English questions and answers of the package `chatterbot-corpus`, if that is installed.
- `questions-1.txt` to `questions-4.txt`: questions of the demo model's kinds, from seeds of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from demo.data import ask

CORPUS = "chatterbot_corpus"
QUESTIONS = 600
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{}<|im_end|>\n"


def reference() -> str:
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def questions(seed: int) -> str:
    rng = Random(f"calibration {seed}")
    samples = [ask("text", rng) for _ in range(QUESTIONS)]
    return "".join(TURN.format(sample.question, sample.answer) for sample in samples)


def dialogues(folder: Path) -> str:
    """All conversations of the English files: `- - ` begins one, `  - ` is what is said next."""
    said = []
    for file in sorted((folder / "data" / "english").glob("*.yml")):
        _, _, conversations = file.read_text(encoding="utf-8").partition("conversations:")
        for line in conversations.splitlines():
            begins = line.startswith("- -")
            said.append("\n" * begins + re.sub(r"^(- |\s*)-?\s*", "", line).strip(" '\""))
    return "\n".join(said).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"python": reference(), **{f"questions-{seed}": questions(seed) for seed in range(1, 5)}}
    found = importlib.util.find_spec(CORPUS)
    if found is not None and found.submodule_search_locations:
        texts["dialogues"] = dialogues(Path(found.submodule_search_locations[0]))
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"{folder / name}.txt: {len(text)} characters")


if __name__ == "__main__":
    main()
