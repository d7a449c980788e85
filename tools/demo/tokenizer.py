"""The demo's tokenizer: a small byte-level BPE that splits text, marks turns and media as Qwen3.5's does."""

from random import Random

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from demo.data import MEDIA, ask
from demo.prompt import answer_text, prompt_text

ORDINARY = 620
"""256 bytes and 364 merges; the added tokens follow."""

# Not marked special: these may appear in an answer that is shown.
VISIBLE = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
VOCABULARY = ORDINARY + len(SPECIAL) + len(VISIBLE)

# Contractions; words with one leading sign; single digits; runs of signs; line ends; spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(questions: int, seed: int) -> list[str]:
    """Prompts with answers, a third of them for each medium, without the added tokens."""
    rng = Random(f"tokenizer {seed}")
    texts: list[str] = []
    for index in range(questions):
        sample = ask(MEDIA[index % len(MEDIA)], rng)
        text = prompt_text(sample) + answer_text(sample)
        for token in SPECIAL + VISIBLE:
            text = text.replace(token, "\0")
        texts.extend(part for part in text.split("\0") if part)
    return texts


def train_tokenizer(seed: int, questions: int = 6000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(questions, seed), trainer)
    if tokenizer.get_vocab_size() != ORDINARY:
        raise RuntimeError(f"the questions gave {tokenizer.get_vocab_size()} tokens, {ORDINARY} are needed")
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
        + [AddedToken(token, special=False, normalized=False) for token in VISIBLE]
    )
    return tokenizer
