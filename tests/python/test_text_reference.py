"""Tokenizer, streaming and chat template against recordings of the original code: equal to the letter."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import golden
from edgewise import ChatTemplate, Tokenizer
from edgewise.detokenizer import Detokenizer

FOLDER = golden.FOLDER / "tokenizer"


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer((FOLDER / "tokenizer.json").read_bytes(), vocab_size=248_320)


@cache
def template() -> ChatTemplate:
    found = ChatTemplate.read(lambda name: path.read_bytes() if (path := FOLDER / name).exists() else None)
    assert found is not None
    return found


def rows(case: str, kind: str = "rows") -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = golden.read_json(f"{case}/case.json")[kind]
    return recorded


def by_name(row: dict[str, Any]) -> str:
    return str(row["name"])


def test_every_string_has_the_recorded_ids_and_text() -> None:
    wrong = []
    for row in rows("tokenizer"):
        got = tokenizer().encode(row["text"])
        text = tokenizer().decode(row["ids"])
        skipped = tokenizer().decode(row["ids"], skip_special_tokens=True)
        want = row["ids"], row["decoded"], row.get("decoded_skip_special", row["decoded"])
        if (got, text, skipped) != want:
            wrong.append(f"{row['text']!r}: {(got, text, skipped)}, recorded {want}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("row", rows("tokenizer", "stream"), ids=by_name)
def test_streaming_gives_the_recorded_piece_for_each_token(row: dict[str, Any]) -> None:
    detokenizer = Detokenizer(tokenizer().decode)
    assert [detokenizer.push(token_id) for token_id in row["ids"]] == row["chunks"]
    assert row["joined"] + detokenizer.flush() == row["full_decode"]
    assert [tokenizer().token_bytes(token_id).hex() for token_id in row["ids"]] == row["token_bytes_hex"]


@pytest.mark.parametrize("row", rows("chat_template"), ids=by_name)
def test_every_conversation_has_the_recorded_prompt(row: dict[str, Any]) -> None:
    def render() -> str:
        generation_prompt = row["add_generation_prompt"]
        return template().render(row["messages"], add_generation_prompt=generation_prompt, **row["kwargs"])

    if "error" in row:
        with pytest.raises(ValueError, match=r"^messages: "):
            render()
    else:
        assert render() == row["prompt"]
        assert tokenizer().encode(row["prompt"]) == row["ids"]
