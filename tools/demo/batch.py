"""Samples of one medium as padded tensors, and what model and MTP head make of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration

from demo.data import Sample
from demo.mtp import MtpHead
from demo.pictures import SIDE
from demo.prompt import FRAMES_PER_PATCH, PATCH, answer_text, patches, prompt_text


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    """[batch, T], padded at the end: nothing before looks there"""
    answer: Tensor
    """[batch, T], true at the answer's tokens and its end"""
    media: dict[str, Tensor]
    """Arguments of the model for pictures or clips"""


def encode(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], int]:
    """Ids of prompt and answer, and the length of the prompt."""
    prompt = tokenizer.encode(prompt_text(sample), add_special_tokens=False).ids
    return prompt + tokenizer.encode(answer_text(sample), add_special_tokens=False).ids, len(prompt)


def collate(tokenizer: Tokenizer, samples: Sequence[Sample]) -> Batch:
    """Samples of one medium as one batch."""
    rows = [encode(tokenizer, sample) for sample in samples]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), tokenizer.token_to_id("<|endoftext|>"))
    answer = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        answer[row, prompt : len(tokens)] = True
    return Batch(ids, answer, media_arguments(tokenizer, samples, ids))


def media_arguments(tokenizer: Tokenizer, samples: Sequence[Sample], ids: Tensor) -> dict[str, Tensor]:
    medium = samples[0].medium
    if medium == "text":
        return {}
    pixels = torch.from_numpy(np.concatenate([patches(sample.frames) for sample in samples]))
    pairs = max(1, len(samples[0].frames) // FRAMES_PER_PATCH)
    grid = torch.tensor([[pairs, SIDE // PATCH, SIDE // PATCH]] * len(samples))
    types = (ids == tokenizer.token_to_id("<|image_pad|>")).int()
    types += 2 * (ids == tokenizer.token_to_id("<|video_pad|>")).int()
    suffix = "_videos" if medium == "video" else ""
    return {f"pixel_values{suffix}": pixels, f"{medium}_grid_thw": grid, "mm_token_type_ids": types}


@dataclass(frozen=True)
class Predictions:
    """Logits at each answer token, in the order of the batch's rows."""

    logits: Tensor
    """[answer tokens, vocab], from the token before"""
    targets: Tensor
    mtp_logits: Tensor
    """[answer tokens, vocab], from the two tokens before"""


def predict(model: Qwen3_5ForConditionalGeneration, mtp: MtpHead, batch: Batch) -> Predictions:
    """Run model and MTP head with the true answer as input.

    A prompt has more than two tokens, so each answer token has a prediction of both kinds.
    """
    hidden = model.model(input_ids=batch.ids, use_cache=False, **batch.media).last_hidden_state
    ahead = mtp(model, hidden, batch.ids)
    return Predictions(
        logits=model.lm_head(hidden[:, :-1][batch.answer[:, 1:]]),
        targets=batch.ids[batch.answer],
        mtp_logits=model.lm_head(ahead[:, :-1][batch.answer[:, 2:]]),
    )
