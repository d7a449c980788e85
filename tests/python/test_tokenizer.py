"""Text to ids and back, in whole characters; every way a `tokenizer.json` can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers.decoders
from hypothesis import given
from hypothesis import strategies as st

import fakes
from edgewise import CheckpointError, Tokenizer
from edgewise.detokenizer import Detokenizer

TOKENIZER = Tokenizer(fakes.byte_tokenizer(), fakes.VOCAB_SIZE)
LIBRARY = tokenizers.Tokenizer.from_str(fakes.byte_tokenizer().decode())
IDS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)
EMOJI = "😀"


def stream(ids: list[int], skip_special_tokens: bool = False) -> tuple[list[str], str]:
    detokenizer = Detokenizer(lambda window: TOKENIZER.decode(window, skip_special_tokens))
    return [detokenizer.push(token_id) for token_id in ids], detokenizer.flush()


@given(IDS, st.booleans())
def test_pieces_and_flush_are_the_text_of_all_ids(ids: list[int], skip_special_tokens: bool) -> None:
    pieces, rest = stream(ids, skip_special_tokens)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids, skip_special_tokens)


@given(IDS)
def test_pieces_are_those_of_the_library(ids: list[int]) -> None:
    library = tokenizers.decoders.DecodeStream(skip_special_tokens=False)
    pieces, _ = stream(ids)
    assert pieces == [library.step(LIBRARY, token_id) or "" for token_id in ids]


@given(st.text())
def test_no_piece_of_a_text_is_half_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text)
    pieces, rest = stream(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert rest == ""


@given(IDS)
def test_token_bytes_spell_the_text(ids: list[int]) -> None:
    spelled = b"".join(TOKENIZER.token_bytes(token_id) for token_id in ids)
    assert spelled.decode(errors="replace") == TOKENIZER.decode(ids)


def test_an_emoji_comes_with_its_last_byte() -> None:
    assert stream(fakes.ids_of("a" + EMOJI + "b")) == (["a", "", "", "", EMOJI, "b"], "")


def test_an_unfinished_character_is_flushed_as_one_replacement() -> None:
    assert stream(fakes.ids_of(EMOJI)[:3]) == (["", "", ""], "\ufffd")


def test_a_detokenizer_is_as_new_after_flush() -> None:
    detokenizer = Detokenizer(TOKENIZER.decode)
    detokenizer.push(fakes.ids_of(EMOJI)[0])
    detokenizer.flush()
    assert detokenizer.push(ord("a")) == "a"


def test_special_tokens_in_a_text_become_special_tokens() -> None:
    assert TOKENIZER.encode("a<|im_end|>") == [ord("a"), fakes.IM_END]


def test_only_special_tokens_are_skipped() -> None:
    ids = [fakes.THINK, ord("a"), fakes.END_THINK, fakes.IM_END]
    assert TOKENIZER.decode(ids) == "<think>a</think><|im_end|>"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_decode_takes_numpy_and_ignores_ids_without_a_token() -> None:
    assert TOKENIZER.decode(np.array([ord("a"), fakes.VOCAB_SIZE - 1], np.uint32)) == "a"
    assert TOKENIZER.token_bytes(fakes.VOCAB_SIZE - 1) == b""


def test_encode_refuses_what_is_no_text() -> None:
    with pytest.raises(TypeError, match="text: expected a string, got bytes"):
        TOKENIZER.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text: not valid Unicode at character 1"):
        TOKENIZER.encode("a\ud800")


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_decode_refuses_impossible_ids(token_id: int) -> None:
    with pytest.raises(ValueError, match="ids: token ids lie between"):
        TOKENIZER.decode([token_id])


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_broken_file_is_named(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^tokenizer\.json: "):
        Tokenizer(data)


def test_a_token_beyond_the_vocabulary_is_refused_with_both_numbers() -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: token id 264 .* vocabulary of 264"):
        Tokenizer(fakes.byte_tokenizer(), 264)


def test_truncation_and_padding_stored_in_the_file_are_ignored() -> None:
    stored = json.loads(fakes.byte_tokenizer())
    stored["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert Tokenizer(json.dumps(stored).encode()).encode("abc") == fakes.ids_of("abc")
