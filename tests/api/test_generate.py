"""What comes out: text, token ids, finish reasons, stop strings, seeds, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet, ContextOverflowError, ValidationError

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def endless(random_path: Path) -> Iterator[BitNet]:
    with BitNet(random_path, n_ctx=128) as loaded:
        yield loaded


def test_the_bundled_model_knows_the_capital_of_france(model: BitNet) -> None:
    reply = model.chat(QUESTION, temperature=0)
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.stop_string is None


def test_reply_fields_agree(model: BitNet) -> None:
    reply = model.chat(QUESTION, temperature=0)
    assert model.detokenize(reply.token_ids) == reply.text
    assert reply.usage.completion_tokens == len(reply.token_ids)
    assert reply.usage.prompt_tokens > 5
    assert 0 <= reply.usage.cached_tokens < reply.usage.prompt_tokens
    assert reply.logprobs is None
    timings = reply.timings
    assert timings.queue >= 0
    assert timings.prefill > 0
    assert timings.decode > 0
    assert timings.time_to_first_token == timings.queue + timings.prefill
    n_computed = reply.usage.prompt_tokens - reply.usage.cached_tokens
    assert timings.prefill_tokens_per_second == pytest.approx(n_computed / timings.prefill)
    assert timings.decode_tokens_per_second == pytest.approx((len(reply.token_ids) - 1) / timings.decode)


def test_stream_is_the_reply_in_pieces(model: BitNet) -> None:
    reply = model.generate("The capital of", max_tokens=30, temperature=0)
    generation = model.stream("The capital of", max_tokens=30, temperature=0)
    deltas = list(generation)
    assert "".join(delta.text for delta in deltas) == reply.text
    assert tuple(i for delta in deltas for i in delta.token_ids) == reply.token_ids
    assert generation.done
    assert generation.result().text == reply.text
    assert list(generation) == []


def test_greedy_tokens_are_the_argmax_of_the_logits(model: BitNet) -> None:
    prompt = model.tokenize("User: Hello")
    reply = model.generate(prompt, max_tokens=12, temperature=0, ignore_eos=True)
    logits = model.logits([*prompt, *reply.token_ids])
    assert logits.argmax(axis=1)[len(prompt) - 1 : -1].tolist() == list(reply.token_ids)


def test_token_ids_are_computed_as_they_are(model: BitNet) -> None:
    text = "The capital of"
    with_bos = model.tokenize(text)
    without_bos = model.tokenize(text, add_special=False)
    assert with_bos[1:] == without_bos
    by_text = model.generate(text, max_tokens=8, temperature=0)
    by_ids = model.generate(with_bos, max_tokens=8, temperature=0)
    assert by_ids.token_ids == by_text.token_ids
    assert by_text.usage.prompt_tokens == len(with_bos)
    assert model.generate(np.array(without_bos), max_tokens=1).usage.prompt_tokens == len(without_bos)


def test_max_tokens(model: BitNet) -> None:
    reply = model.generate("Hello", max_tokens=3, temperature=0, ignore_eos=True)
    assert len(reply.token_ids) == 3
    assert reply.finish_reason == "length"


def test_ignore_eos_goes_on_after_the_end(model: BitNet) -> None:
    reply = model.chat(QUESTION, temperature=0)
    longer = model.chat(QUESTION, temperature=0, ignore_eos=True, max_tokens=len(reply.token_ids) + 5)
    assert longer.finish_reason == "length"
    assert longer.token_ids[: len(reply.token_ids)] == reply.token_ids
    assert len(longer.token_ids) == len(reply.token_ids) + 5
    end = longer.token_ids[len(reply.token_ids)]
    assert model.detokenize([end]) == ""
    assert model.detokenize([end], skip_special=False) != ""


def test_the_answer_ends_with_the_context(endless: BitNet) -> None:
    prompt = list(range(65, 65 + 100))
    for max_tokens in (1024, None):
        reply = endless.generate(prompt, temperature=0, max_tokens=max_tokens, ignore_eos=True)
        assert reply.finish_reason == "length"
        assert len(reply.token_ids) == 28
    assert len(endless.generate(prompt + prompt[:27], temperature=0, ignore_eos=True).token_ids) == 1


def test_too_long_a_prompt_is_refused_with_both_numbers(endless: BitNet) -> None:
    for length in (128, 500):
        with pytest.raises(ContextOverflowError, match=f"{length} tokens; a context of 128") as caught:
            endless.generate([65] * length)
        assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (length, 128)


def test_a_token_outside_of_the_vocabulary_is_refused(endless: BitNet) -> None:
    with pytest.raises(ValidationError, match="token id 288 is outside of the vocabulary of 288"):
        endless.generate([1, 288])
    with pytest.raises(ValidationError, match="logit_bias: token id 300"):
        endless.generate("x", logit_bias={300: 1})
    with pytest.raises(ValidationError, match="token id 1000"):
        endless.logits([1000])


def test_stop_strings_never_leak(model: BitNet) -> None:
    whole = model.chat(QUESTION, temperature=0).text
    for start in range(0, len(whole), 3):
        for length in (1, 7):
            stop = whole[start : start + length]
            generation = model.stream_chat(QUESTION, temperature=0, stop=[stop, "\0never\0"])
            deltas = list(generation)
            reply = generation.result()
            assert reply.text == whole[: whole.index(stop)]
            assert "".join(delta.text for delta in deltas) == reply.text
            assert (reply.finish_reason, reply.stop_string) == ("stop", stop)
            assert model.detokenize(reply.token_ids).startswith(reply.text + stop)


def test_what_a_stop_string_held_back_comes_at_the_end(model: BitNet) -> None:
    whole = model.chat(QUESTION, temperature=0)
    reply = model.chat(QUESTION, temperature=0, stop=whole.text[-4:] + "!!!")
    assert (reply.text, reply.finish_reason, reply.stop_string) == (whole.text, "stop", None)
    cut = model.chat(QUESTION, temperature=0, max_tokens=3, stop=whole.text + "!!!")
    assert cut.text == model.detokenize(cut.token_ids) != ""
    assert cut.finish_reason == "length"


def test_streamed_text_has_no_half_characters(model: BitNet) -> None:
    lead = next(
        i for i in range(model.info.vocab_size) if model.detokenize([i]).encode("utf-8") == "\ufffd".encode()
    )
    deltas = list(model.stream("x", max_tokens=3, temperature=0, logit_bias={lead: 100}))
    assert [delta.token_ids for delta in deltas if delta.token_ids] == [(lead,)] * 3
    assert deltas[0].text in ("", "\ufffd")
    assert "".join(delta.text for delta in deltas) == model.detokenize([lead] * 3)


def test_the_same_seed_gives_the_same_tokens(model: BitNet) -> None:
    def tokens(seed: int | None) -> tuple[int, ...]:
        return model.generate("Once", max_tokens=24, temperature=5, top_p=1, top_k=0, seed=seed).token_ids

    assert tokens(7) == tokens(7)
    assert tokens(-1) == tokens(2**64 - 1)
    assert len({tokens(seed) for seed in (1, 2, 3, None, None)}) >= 4


def test_tiny_temperature_is_greedy(model: BitNet) -> None:
    greedy = model.generate("The capital of", max_tokens=16, temperature=0).token_ids
    assert model.generate("The capital of", max_tokens=16, temperature=1e-30).token_ids == greedy
    assert model.generate("The capital of", max_tokens=16, temperature=2, top_k=1).token_ids == greedy


def test_logit_bias_decides(model: BitNet) -> None:
    reply = model.generate("Hello", max_tokens=4, temperature=0, logit_bias={100: 100})
    assert reply.token_ids == (100, 100, 100, 100)
    first = model.generate("Hello", max_tokens=1, temperature=0, ignore_eos=True).token_ids[0]
    other = model.generate("Hello", max_tokens=1, temperature=0, ignore_eos=True, logit_bias={first: -100})
    assert other.token_ids[0] != first


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_count_what_was_said(model: BitNet, penalty: str) -> None:
    prompt = model.tokenize("Hello")
    # Two tokens that a bias lifts above all others, `a` ahead of `b` by about 1 at both steps.
    for a in range(100, 200):
        first, second = model.logits([*prompt, a])[-2:]
        lead = second[a] - second
        found = np.flatnonzero((lead < 1) & (np.abs(first[a] - first - lead) < 0.5))
        if (b := int(found[0])) != a:
            break
    options = {
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {a: 100, b: 99 + float(lead[b])},
    }
    assert model.generate(prompt, **options).token_ids == (a, a)  # type: ignore[arg-type]
    assert model.generate(prompt, **options, **{penalty: 1.9}).token_ids == (a, b)  # type: ignore[arg-type]


def test_logprobs_are_those_of_the_logits(model: BitNet) -> None:
    prompt = model.tokenize("The capital of")
    options = {"max_tokens": 6, "temperature": 1.3, "seed": 3, "ignore_eos": True}
    reply = model.generate(prompt, logprobs=True, top_logprobs=4, logit_bias={50: 3}, **options)  # type: ignore[arg-type]
    logits = model.logits([*prompt, *reply.token_ids]).astype(np.float64)[len(prompt) - 1 : -1]
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert reply.logprobs is not None
    assert [entry.token_id for entry in reply.logprobs] == list(reply.token_ids)
    for entry, row in zip(reply.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)
        assert [top.token_id for top in entry.top] == np.argsort(-row)[:4].tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(np.sort(row)[::-1][:4].tolist(), abs=1e-4)
        assert entry.token == model.detokenize([entry.token_id], skip_special=False)
    without_top = model.generate(prompt, logprobs=True, **options)  # type: ignore[arg-type]
    assert without_top.logprobs is not None
    assert all(entry.top == () for entry in without_top.logprobs)


def test_logits_are_the_same_in_pieces(slow_path: Path) -> None:
    ids = [(7 * i) % 250 for i in range(200)]
    with BitNet(slow_path) as loaded:
        logits = loaded.logits(ids)
        assert logits.shape == (200, 288)
        assert logits.dtype == np.float32
        for length in (1, 64, 65, 130):
            assert np.array_equal(loaded.logits(ids[:length]), logits[:length])
        assert loaded.logits(tuple(ids)).tobytes() == logits.tobytes()


def test_logits_of_a_whole_context(endless: BitNet) -> None:
    assert endless.logits([65] * 128).shape == (128, 288)
    with pytest.raises(ContextOverflowError):
        endless.logits([65] * 129)
    with pytest.raises(ValidationError, match="empty"):
        endless.logits([])


def test_tokenize_and_detokenize(model: BitNet) -> None:
    for text in ("Hello, world!", "  two  spaces\n\ttab", "Zażółć 日本語 🙂🇵🇱", "", "<|eot_id|>"):
        assert model.detokenize(model.tokenize(text)) == text
    plain = model.tokenize("<|eot_id|>", add_special=False)
    special = model.tokenize("<|eot_id|>", add_special=False, parse_special=True)
    assert len(plain) > 1
    assert len(special) == 1
    assert model.detokenize(special) == ""
    assert model.detokenize(special, skip_special=False) == "<|eot_id|>"
    with pytest.raises(ValidationError):
        model.tokenize("\ud800")
    with pytest.raises(ValidationError):
        model.detokenize([10**6])


def test_a_system_message_reaches_the_model(model: BitNet) -> None:
    short = model.chat(QUESTION, max_tokens=1).usage.prompt_tokens
    system = {"role": "system", "content": "Answer in one sentence."}
    assert model.chat([system, *QUESTION], max_tokens=1).usage.prompt_tokens > short + 3
