"""The training of examples/train_tiny, on a model too small to learn anything. Needs torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What is imported below these two needs them; without them the tests are skipped.
torch = pytest.importorskip("torch")

pytest.importorskip("tokenizers")

from bitnet import BitNet  # noqa: E402
from bitnet.models import bundled  # noqa: E402
from tiny_bitnet.batches import chunk_batches, collate, passage_pairs  # noqa: E402
from tiny_bitnet.corpus import Sample, Source, draw_family, tokenizer_texts  # noqa: E402
from tiny_bitnet.corpus.source import marked  # noqa: E402
from tiny_bitnet.corpus.tools import tools  # noqa: E402
from tiny_bitnet.export import export  # noqa: E402
from tiny_bitnet.induction import construct_induction  # noqa: E402
from tiny_bitnet.model import ModelConfig, TinyBitNet  # noqa: E402
from tiny_bitnet.tokenizer import encode, merge, text_ids, train_tokenizer  # noqa: E402
from tiny_bitnet.train import Trainer, TrainOptions, _losses  # noqa: E402
from tiny_bitnet.warm_start import read_config, read_tokenizer  # noqa: E402

pytestmark = pytest.mark.reference

CONFIG = ModelConfig(vocab_size=640, intermediate_size=128, num_hidden_layers=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_texts(0, 300), CONFIG.vocab_size)


@pytest.fixture(scope="module")
def network() -> TinyBitNet:
    torch.manual_seed(0)
    model = TinyBitNet(CONFIG)
    construct_induction(model)
    return model


def test_branches_are_the_same_as_conversations_of_their_own(
    tokenizer: Tokenizer, network: TinyBitNet
) -> None:
    families = [[encode(tokenizer, sample) for sample in tools(Source("train", seed))] for seed in range(8)]
    merged = [merge(rows) for rows in families]
    assert sum(len(row.ids) for row in merged) < 0.5 * sum(len(row.ids) for rows in families for row in rows)
    compared = 0
    for rows, row in zip(families, merged, strict=True):
        if sum(row.weights[: row.branches.count(0)]) > 0:
            continue  # an answer in the common beginning counts once
        with torch.no_grad():
            together = _losses(network, collate([row]), torch.device("cpu"))
            apart = sum(_losses(network, collate([alone]), torch.device("cpu")) for alone in rows)
        assert float(together) == pytest.approx(float(apart), rel=1e-3)
        compared += 1
    assert compared >= 3


def test_every_conversation_survives_encoding(tokenizer: Tokenizer) -> None:
    source = Source("train", 5)
    for _ in range(150):
        for sample in draw_family(source):
            row = encode(tokenizer, sample)
            text = tokenizer.decode(row.ids, skip_special_tokens=False)
            answer = sample.plain()[-1][1]
            assert text.endswith(f"Assistant: {answer}<|eot_id|>")
            assert sum(row.weights) > 0


def test_what_decides_weighs_four_times_as_much(tokenizer: Tokenizer) -> None:
    messages = [("user", "Hello"), ("assistant", f"It is {marked('Lisbon')} and {marked('ab')}.")]
    row = encode(tokenizer, Sample(messages, "chat"))
    tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in row.ids]
    weights = {"".join(tokens[:i]): weight for i, weight in enumerate(row.weights)}

    def behind(text: str) -> float:
        return next(weight for before, weight in weights.items() if before.endswith(text))

    assert behind("It is ") == behind("Lisbon and ") == pytest.approx(4 * behind("Assistant: "))


def test_chunks_are_reproducible_and_pairs_are_aligned(tokenizer: Tokenizer) -> None:
    one, two = (list(islice(chunk_batches(tokenizer, 0, 4, False, 500, 900), 3)) for _ in range(2))
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.weights, b.weights) for a, b in zip(one, two, strict=True)
    )
    pairs = passage_pairs(tokenizer, 0, 1, 8)
    assert pairs.ids.shape == pairs.real.shape
    assert pairs.ids.shape[0] == 16


def test_a_run_resumes_and_its_file_runs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    options = TrainOptions(steps=4, early_steps=2, evaluate_every=1000, pairs=4, pairs_every=2, seed=1)
    first = Trainer(tokenizer, CONFIG, options, tmp_path)
    first.step = 2  # as if stopped half way
    first.save()
    second = Trainer(tokenizer, CONFIG, options, tmp_path)
    second.resume()
    assert second.step == 2
    second.run()
    assert torch.load(second.checkpoint, weights_only=True)["step"] == 4
    output = tmp_path / "tiny.gguf"
    export(second.checkpoint, tokenizer, output)
    text = 'Привет, world 42! {"a": 1}'
    with BitNet(output) as model:
        assert model.tokenize(text, add_special=False) == text_ids(tokenizer, text)
        with torch.no_grad():
            ids = model.tokenize(text)
            expected = second.model(torch.tensor([ids])).numpy()
        found = model.logits(ids)
        assert abs(found - expected).max() < 0.05 * abs(expected).max()


def test_a_run_goes_on_from_a_file(tmp_path: Path) -> None:
    file = bundled.path()
    tokenizer, config = read_tokenizer(file), read_config(file)
    text = 'Привет, world 42! {"a": 1} <tool_call> x\n\n  y'
    trainer = Trainer(tokenizer, config, TrainOptions(), tmp_path)
    trainer.start_from(file)
    larger = replace(config, num_hidden_layers=config.num_hidden_layers + 2)
    grown = Trainer(tokenizer, larger, TrainOptions(), tmp_path)
    grown.start_from(file)
    with BitNet(file) as model:
        assert model.tokenize(text, add_special=False) == text_ids(tokenizer, text)
        ids = model.tokenize(text)
        expected = model.logits(ids)
    for network in (trainer.model, grown.model):
        with torch.no_grad():
            found = network(torch.tensor([ids])).numpy()
        assert abs(found - expected).max() < 0.05 * abs(expected).max()
    trainer.save()
    export(trainer.checkpoint, tokenizer, tmp_path / "again.gguf")
    with BitNet(tmp_path / "again.gguf") as model:
        assert abs(model.logits(ids) - expected).max() < 1e-3 * abs(expected).max()
    with pytest.raises(ValueError, match="the file has 6 layers, 2 more than asked for"):
        Trainer(tokenizer, replace(config, num_hidden_layers=4), TrainOptions(), tmp_path).start_from(file)
