"""Prompts, the loop, and what comes back, on an engine that says what it is told to."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

import fakes
from edgewise import CheckpointError, ContextError, Model, Result
from fakes import FakeModel, ids_of, side_files

RENDERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
USER = [{"role": "user", "content": "Hi"}]


def prompt_of(model: FakeModel) -> list[int]:
    """The ids that the last call gave to the engine as its prompt."""
    return model.engine.sequences[-1].appended[0]


def encoded(text: str) -> list[int]:
    return FakeModel().tokenizer.encode(text)


class TestPrompt:
    def test_a_string_is_a_question(self) -> None:
        model = FakeModel()
        model.generate("Hi")
        assert prompt_of(model) == encoded(RENDERED)

    def test_a_raw_string_is_continued(self) -> None:
        model = FakeModel()
        model.generate("Hi", raw=True)
        assert prompt_of(model) == ids_of("Hi")

    def test_without_a_template_a_string_is_continued(self) -> None:
        model = FakeModel(files=side_files(chat_template=None))
        model.generate("Hi")
        assert prompt_of(model) == ids_of("Hi")

    def test_messages_go_through_the_template(self) -> None:
        model = FakeModel()
        result = model.generate(USER, enable_thinking=True)
        assert prompt_of(model) == encoded(RENDERED + "<think>\n")
        assert result.prompt_token_ids == prompt_of(model)

    @pytest.mark.parametrize(
        "ids", [[1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], np.uint8), range(1, 3)]
    )
    def test_ids_are_continued(self, ids: Any) -> None:
        model = FakeModel()
        model.generate(ids)
        assert prompt_of(model) == [1, 2]

    def test_further_variables_reach_the_template(self) -> None:
        model = FakeModel(files=side_files(chat_template=b"{{ mood }}"))
        model.generate(USER, chat_template_kwargs={"mood": "glad"})
        assert prompt_of(model) == ids_of("glad")

    @pytest.mark.parametrize("empty", ["", [], (), np.array([], np.int64)])
    def test_nothing_is_no_prompt(self, empty: Any) -> None:
        with pytest.raises(ValueError, match=r"^prompt: is empty"):
            FakeModel().generate(empty)

    @pytest.mark.parametrize("prompt", [5, None, b"Hi", {"role": "user", "content": "Hi"}])
    def test_what_is_no_prompt(self, prompt: Any) -> None:
        with pytest.raises(TypeError, match=r"^prompt: expected"):
            FakeModel().generate(prompt)

    @pytest.mark.parametrize("ids", [[1, "a"], [1.0], [True], np.array([[1, 2]]), [1, None]])
    def test_ids_of_the_wrong_type(self, ids: Any) -> None:
        with pytest.raises(TypeError, match=r"^ids\[\d\]: expected a token id"):
            FakeModel().generate(ids)

    @pytest.mark.parametrize("token_id", [-1, fakes.VOCAB_SIZE])
    def test_ids_outside_the_vocabulary(self, token_id: int) -> None:
        with pytest.raises(ValueError, match=rf"^ids\[1\]: {token_id} is outside the vocabulary of 272"):
            FakeModel().generate([0, token_id])

    def test_messages_without_a_template(self) -> None:
        with pytest.raises(CheckpointError, match="no chat template"):
            FakeModel(files=side_files(chat_template=None)).generate(USER)

    def test_arguments_that_would_have_no_effect_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^raw: "):
            FakeModel().generate(USER, raw=True)
        with pytest.raises(ValueError, match=r"^enable_thinking: only messages"):
            FakeModel().generate([1], enable_thinking=False)
        with pytest.raises(ValueError, match=r"^tools: only messages"):
            FakeModel().generate("Hi", raw=True, tools=[])


class TestResult:
    def test_a_whole_answer(self) -> None:
        model = FakeModel("Grüße 😀")
        result = model.generate("Hi")
        assert result.text == str(result) == "Grüße 😀"
        assert result.token_ids == [*ids_of("Grüße 😀"), fakes.IM_END], "the token that ended it is included"
        assert (result.finish_reason, result.stop) == ("stop", fakes.IM_END)
        assert result.logprobs is None

    def test_usage_is_a_record_and_a_dictionary(self) -> None:
        usage = FakeModel("abc").generate([1, 2]).usage
        assert usage == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6, "cached_tokens": 0}
        assert usage.total_tokens == usage["total_tokens"] == 6
        with pytest.raises(KeyError):
            usage["nothing"]

    def test_timings(self) -> None:
        timings = FakeModel("abc").generate([1, 2]).timings
        assert timings.prefill_seconds > 0
        assert timings.prefill_tokens_per_second == pytest.approx(2 / timings.prefill_seconds)
        assert timings.decode_tokens_per_second == pytest.approx(3 / timings.decode_seconds)
        assert timings.time_to_first_token >= timings.prefill_seconds

    def test_one_token_has_no_decoding_speed(self) -> None:
        timings = FakeModel("").generate([1]).timings
        assert (timings.decode_seconds, timings.decode_tokens_per_second) == (0, 0)

    def test_a_result_can_be_written_as_json(self) -> None:
        result = FakeModel("é").generate([1], logprobs=1, seed=5)
        stored = json.loads(json.dumps(result.to_dict()))
        assert stored["usage"]["prompt_tokens"] == 1
        assert stored["logprobs"][0]["bytes"] == [0xC3]
        assert stored["logprobs"][0]["top_logprobs"][0]["token_id"] == 0xC3
        assert stored["seed"] == 5

    def test_logprobs(self) -> None:
        result = FakeModel("ab").generate([1], logprobs=2, max_new_tokens=2)
        assert result.logprobs is not None
        first, second = result.logprobs
        assert (first.token_id, first.token, first.logprob, first.bytes) == (ord("a"), "a", -0.5, b"a")
        assert [(t.token, t.logprob) for t in second.top_logprobs] == [("b", -0.5), ("c", -1.5)]
        assert FakeModel("ab").generate([1], logprobs=0).logprobs is not None

    def test_the_seed_drawn_is_told(self) -> None:
        model = FakeModel()
        result = model.generate([1])
        assert result.seed == model.samplers[0].options["seed"]


class TestStops:
    @pytest.mark.parametrize("stop", ["\nUser:", ["x", "\nUser:"]])
    def test_a_stop_string_over_many_tokens_is_cut(self, stop: Any) -> None:
        result = FakeModel("Yes.\nUser: No").generate([1], stop=stop)
        assert (result.text, result.finish_reason, result.stop) == ("Yes.", "stop", "\nUser:")
        assert result.token_ids == ids_of("Yes.\nUser:")

    def test_a_possible_stop_at_the_end_is_given_out(self) -> None:
        assert FakeModel("Yes.\nUs").generate([1], stop="\nUser:").text == "Yes.\nUs"
        assert FakeModel("Yes.\nUser:").generate([1], stop="\nUser:", max_new_tokens=6).text == "Yes.\nU"

    def test_a_stop_string_that_comes_with_the_last_token(self) -> None:
        result = FakeModel("abc").generate([1], stop="c", max_new_tokens=3)
        assert (result.text, result.finish_reason) == ("ab", "stop")

    def test_stop_ids(self) -> None:
        result = FakeModel("abc").generate([1], stop_token_ids=[ord("b")])
        assert (result.text, result.stop, result.token_ids) == ("a", ord("b"), ids_of("ab"))

    @pytest.mark.parametrize("name", ["stop_token_ids", "suppress_tokens"])
    def test_stop_and_suppressed_ids_outside_the_vocabulary(self, name: str) -> None:
        arguments: dict[str, Any] = {name: [fakes.VOCAB_SIZE]}
        with pytest.raises(ValueError, match=rf"^{name}: 272 is outside the vocabulary of 272"):
            FakeModel().generate([1], **arguments)

    def test_the_end_can_be_ignored(self) -> None:
        result = FakeModel("a").generate([1], ignore_eos=True, max_new_tokens=4)
        assert result.token_ids == [ord("a"), *[fakes.IM_END] * 3]
        assert (result.text, result.finish_reason, result.stop) == ("a", "length", None)
        kept = FakeModel("a").generate([1], ignore_eos=True, max_new_tokens=2, skip_special_tokens=False)
        assert kept.text == "a<|im_end|>"

    def test_a_special_token_may_be_given_as_a_stop_string(self) -> None:
        answer = [ord("a"), fakes.IM_START, ord("b")]
        assert FakeModel(answer).generate([1], stop="<|im_start|>").text == "a"
        assert FakeModel(answer).generate([1], stop="<|im_start|>", skip_special_tokens=False).text == "a"

    def test_an_unfinished_character_at_the_limit(self) -> None:
        assert FakeModel("😀").generate([1], max_new_tokens=2).text == "\ufffd"

    @pytest.mark.parametrize(
        ("generation_config", "config", "tokenizer_config"),
        [
            ({"eos_token_id": 258}, {}, {}),
            ({"eos_token_id": [1, 258]}, {"eos_token_id": 5}, {}),
            ({}, {"eos_token_id": 258, "text_config": {"eos_token_id": 5}}, {"eos_token": "<|im_start|>"}),
            (None, {"text_config": {"eos_token_id": [258]}}, {}),
            (None, {"text_config": {}}, {"eos_token": "<|im_end|>"}),
            ({"eos_token_id": None}, {"text_config": None}, {"eos_token": {"content": "<|im_end|>"}}),
        ],
    )
    def test_where_the_end_is_told(self, generation_config: Any, config: Any, tokenizer_config: Any) -> None:
        files = side_files(generation_config=generation_config, tokenizer_config=tokenizer_config)
        assert FakeModel("a", files=files, config=config).generate([7]).text == "a"

    @pytest.mark.parametrize("entry", ["258", 1.5, [True], [[1]], -1])
    def test_an_unusable_end(self, entry: Any) -> None:
        with pytest.raises(CheckpointError, match=r"^generation_config\.json: 'eos_token_id'"):
            FakeModel("a", files=side_files(generation_config={"eos_token_id": entry})).generate([7])


class TestStream:
    def test_one_piece_a_token_and_the_last_tells_how_it_ended(self) -> None:
        pieces = list(FakeModel("é!").stream([1]))
        assert [piece.text for piece in pieces] == ["", "é", "!", ""]
        assert [piece.token_ids for piece in pieces] == [[0xC3], [0xA9], [ord("!")], [fakes.IM_END]]
        assert [piece.finish_reason for piece in pieces] == [None, None, None, "stop"]
        assert pieces[-1].usage == {**pieces[-1].usage, "completion_tokens": 4}  # type: ignore[dict-item]
        assert pieces[-1].timings is not None
        assert str(pieces[2]) == "!"

    def test_mistakes_are_told_at_once(self) -> None:
        with pytest.raises(ValueError, match="top_p"):
            FakeModel().stream([1], top_p=2)

    def test_leaving_early_keeps_whole_tokens_and_the_model(self) -> None:
        model = FakeModel("abc")
        stream = model.stream([1, 2])
        next(stream)
        next(stream)
        stream.close()
        assert model.engine.sequences[0].appended == [[1, 2], [ord("a")]]
        assert model.generate([1]).text == "abc"

    def test_an_interrupt_keeps_whole_tokens_and_the_model(self) -> None:
        model = FakeModel("abc")
        model.engine.interrupt_at = 2
        seen = []
        with pytest.raises(KeyboardInterrupt):
            seen += [piece.text for piece in model.stream([1, 2])]
        assert model.engine.sequences[0].appended == [[1, 2], [ord("a")]]
        assert model.generate([1]).text == "abc"

    def test_time_of_the_consumer_is_not_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        timings = None
        for piece in FakeModel("abc").stream([1]):
            now[0] += 100.0
            timings = piece.timings
        assert timings is not None
        assert timings.decode_seconds == 0

    def test_the_text_is_that_of_generate(self) -> None:
        arguments: dict[str, Any] = {"stop": ["gh"], "max_new_tokens": 20}
        text = "".join(piece.text for piece in FakeModel("a😀é\u0301fgh").stream([1], **arguments))
        assert text == FakeModel("a😀é\u0301fgh").generate([1], **arguments).text


class TestLoop:
    def test_the_sampler_sees_prompt_and_answer_and_the_last_token_is_not_computed(self) -> None:
        model = FakeModel("ab")
        model.generate([1, 2], max_new_tokens=2)
        assert model.samplers[0].observed == [([1, 2], False), ([ord("a")], True)]
        assert model.engine.sequences[0].appended == [[1, 2], [ord("a")]]
        assert model.engine.sequences[0].reserved == 4

    def test_sampling_arguments_reach_the_sampler(self) -> None:
        model = FakeModel()
        model.generate([1], temperature=0.5, top_k=3, suppress_tokens=[4], seed=9)
        assert model.samplers[0].options == {
            "temperature": 0.5, "top_k": 3, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 9, "logprobs": None, "suppress": (4,),
        }  # fmt: skip

    def test_a_prompt_longer_than_the_context(self) -> None:
        with pytest.raises(
            ContextError, match="10 tokens of prompt and 1 new ones are needed, the limit is 10"
        ):
            FakeModel(context_length=10).generate([1] * 10)

    def test_an_explicit_limit_beyond_the_context(self) -> None:
        model = FakeModel(context_length=10)
        with pytest.raises(ContextError, match="5 tokens of prompt and 6 new ones"):
            model.generate([1] * 5, max_new_tokens=6)
        assert model.engine.sequences == [], "refused before the work"
        assert model.generate([1] * 5, max_new_tokens=5).usage.total_tokens == 10

    def test_a_default_limit_is_lowered_to_the_context(self) -> None:
        result = FakeModel("a" * 100, context_length=10).generate([1] * 4)
        assert (result.text, result.finish_reason) == ("a" * 6, "length")

    def test_threads_do_not_disturb_each_other(self) -> None:
        model = FakeModel("abcdef" * 10)
        results: list[Result] = []
        threads = [threading.Thread(target=lambda: results.append(model.generate("Hi"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [result.text for result in results] == ["abcdef" * 10] * 4


class TestWithoutTokenizer:
    FILES = side_files(tokenizer=None, chat_template=None)

    def test_ids_are_continued_without_text(self) -> None:
        result = FakeModel("ab", files=self.FILES).generate([1], logprobs=1)
        assert (result.text, result.token_ids[:2]) == ("", ids_of("ab"))
        assert result.logprobs is not None
        assert (result.logprobs[0].token, result.logprobs[0].bytes) == ("", b"")

    def test_text_is_refused(self) -> None:
        model = FakeModel(files=self.FILES)
        with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json"):
            model.generate("Hi")
        with pytest.raises(ValueError, match=r"^stop: fake has no tokenizer\.json"):
            model.generate([1], stop="a")


class TestModel:
    def test_a_broken_tokenizer_is_named_when_it_is_used(self) -> None:
        model = FakeModel(files=side_files(tokenizer=b"{"))
        with pytest.raises(CheckpointError, match=r"^tokenizer\.json: "):
            model.generate("Hi")

    @pytest.mark.parametrize("stem", ["generation_config", "tokenizer_config", "chat_template"])
    def test_other_broken_files_are_named_when_the_model_is_opened(self, stem: str) -> None:
        with pytest.raises(CheckpointError, match=f"^{stem}"):
            FakeModel(files=side_files(**{stem: b"{% nothing %}"}))

    def test_logits_and_trace_check_their_ids(self) -> None:
        assert FakeModel().logits(np.array([1, 2])).shape == (2, fakes.VOCAB_SIZE)
        assert set(FakeModel().trace([1])) == {"logits"}
        with pytest.raises(ValueError, match="at least one token id"):
            FakeModel().logits([])
        with pytest.raises(TypeError, match="expected a list of token ids, got str"):
            FakeModel().trace("Hi")  # type: ignore[arg-type]

    @pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError)])
    def test_impossible_threads(self, threads: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^threads: expected"):
            Model.from_pretrained("demo", threads=threads)

    def test_what_a_model_tells_of_itself(self) -> None:
        model = FakeModel()
        assert repr(model) == "Model('fake', threads=2)"
        assert model.config == {"model_type": "qwen3_5"}
        assert model.eos_token_ids == (fakes.IM_END, fakes.END_OF_TEXT)
        assert model.info()["tier"] == "portable"
        assert len(model.sequence()) == 0
