"""The training of examples/train_tiny, on a model too small to learn anything. Needs torch."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# What is imported below these two needs them, hence E402; without them the tests are skipped.
torch = pytest.importorskip("torch")

pytest.importorskip("tokenizers")

from bitnet import BitNet  # noqa: E402
from bitnet.models import bundled  # noqa: E402
from tiny_bitnet.batches import Batch, chunk_rows, collate, passage_pairs  # noqa: E402
from tiny_bitnet.bitlinear import norm_bit_linear, quantise_activations, rms_norm, ternary  # noqa: E402
from tiny_bitnet.corpus import Sample, Source, draw_family, tokenizer_texts  # noqa: E402
from tiny_bitnet.corpus.choosing import options  # noqa: E402
from tiny_bitnet.corpus.finding import line_choice  # noqa: E402
from tiny_bitnet.corpus.reading import reading  # noqa: E402
from tiny_bitnet.corpus.source import MARK, UNMARK, marked  # noqa: E402
from tiny_bitnet.corpus.tools import call_text, tools  # noqa: E402
from tiny_bitnet.export import export  # noqa: E402
from tiny_bitnet.guides import COPY, DECISION, OWN_LABEL, SAME_TOKEN, small_letters  # noqa: E402
from tiny_bitnet.induction import construct_induction  # noqa: E402
from tiny_bitnet.model import ModelConfig, TinyBitNet  # noqa: E402
from tiny_bitnet.tokenizer import Encoded, encode, merge, text_ids, train_tokenizer  # noqa: E402
from tiny_bitnet.train import Trainer, TrainOptions, _answers_loss  # noqa: E402
from tiny_bitnet.warm_start import read_config, read_tokenizer, read_weights  # noqa: E402

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
            together = _answers_loss(network, collate([row]))
            apart = sum(_answers_loss(network, collate([alone])) for alone in rows)
        assert float(together) == pytest.approx(float(apart), rel=1e-3)
        compared += 1
    assert compared >= 3


def _guided(row: Encoded) -> set[tuple[int, int, int, int]]:
    """Guides as token ids: what looks, and the first and the last token it should look at."""
    return {(kind, row.ids[at], row.ids[start], row.ids[end - 1]) for kind, at, start, end, _ in row.guides}


def test_guides_lead_to_labels_and_to_the_same_token(tokenizer: Tokenizer) -> None:
    source = Source("train", 12)
    same = small_letters(tokenizer)
    seen: Counter[tuple[int, bool]] = Counter()
    tells = ended = 0
    for skill in (tools, line_choice, reading, options):
        for _ in range(12):
            family = skill(source)
            rows = [encode(tokenizer, sample) for sample in family]
            for sample, row in zip(family, rows, strict=True):
                ids = [same[i] for i in row.ids]
                asked = min((guide.place for guide in row.guides if guide.kind == SAME_TOKEN), default=0)
                for kind, place, start, end, told in row.guides:
                    seen[kind, end > 1] += 1
                    if kind == COPY:
                        # What is behind a text may be the same here and there, and is not always learned.
                        ends = row.ids[start] != row.ids[place + 1] or row.weights[place + 1] == 0
                        ended += ends
                        assert not ends or row.ids[start - 1] == row.ids[place]
                        assert start < place
                        continue
                    assert sample.clue
                    assert told == -1 or sample.clue.label.startswith(tokenizer.decode([told]))
                    tells += told >= 0
                    looked_at = tokenizer.decode(row.ids[start:end])
                    if kind == OWN_LABEL:
                        assert sample.clue.label.startswith(looked_at.strip(' ("'))
                        assert place >= end == start + 1
                    elif kind == SAME_TOKEN and end > 1:
                        assert sample.clue.evidence in looked_at
                        assert ids[place] in ids[start:end]
                    elif kind == SAME_TOKEN:
                        assert ids[place] not in ids[:asked]
                    else:
                        assert sample.clue.question in looked_at
            # A merged row has the same guides, each once.
            merged = merge(rows)
            assert _guided(merged) >= set().union(*map(_guided, rows))
            assert len(set(merged.guides)) == len(merged.guides) <= sum(len(row.guides) for row in rows)
            for _, place, start, end, _ in merged.guides:
                assert start < end
                assert merged.branches[start] in (0, merged.branches[place])
    assert set(seen) == {
        (OWN_LABEL, True),
        (SAME_TOKEN, True),
        (SAME_TOKEN, False),
        (DECISION, True),
        (COPY, True),
    }
    assert min(seen.values()) > 40
    assert tells > 200
    assert ended > 200


def test_the_loss_of_a_guide_is_the_attention_that_is_elsewhere() -> None:
    torch.manual_seed(0)
    network = TinyBitNet(replace(CONFIG, num_hidden_layers=4))
    ids = torch.randint(5, CONFIG.vocab_size, (2, 30))
    ids[1, [3, 9, 12, 15, 20]] = 7
    network(ids)

    def share(*guide: int) -> float:
        return float(network.guide_loss(ids, torch.tensor([[1, *guide, -1]]), None).detach().neg().exp())

    parts = [share(OWN_LABEL, 20, *part) for part in ((0, 8), (8, 15), (15, 21))]
    assert sum(parts) == pytest.approx(1)
    assert min(parts) > 0
    assert share(OWN_LABEL, 20, 0, 30) == pytest.approx(1)  # what comes later is not seen
    attention = _attention(network, SAME_TOKEN)
    assert share(SAME_TOKEN, 20, 2, 10) == pytest.approx(float(attention[[3, 9]].sum()), rel=1e-4)
    assert share(SAME_TOKEN, 20, 0, 1) == pytest.approx(float(attention[0]), rel=1e-4)
    # A decision is to look at the tokens of the question (10 to 19) that were found: here 12 and 15.
    found = [[1, SAME_TOKEN, place, 2, 8, -1] for place in (12, 15)] + [[1, SAME_TOKEN, 13, 0, 1, -1]]
    lost = [
        float(network.guide_loss(ids, torch.tensor(guides), None).detach())
        for guides in ([*found, [1, DECISION, 20, 10, 19, -1]], found)
    ]
    attention = _attention(network, DECISION)
    assert lost[0] - lost[1] == pytest.approx(-float(attention[[12, 15]].sum().log()), rel=1e-3)


def test_what_a_head_found_is_told_by_a_readout() -> None:
    torch.manual_seed(0)
    network = TinyBitNet(replace(CONFIG, num_hidden_layers=4))
    with torch.no_grad():
        network(torch.randint(5, CONFIG.vocab_size, (2, 30)))
    guides = torch.tensor(
        [[1, OWN_LABEL, 20, 3, 4, 9], [0, OWN_LABEL, 8, 3, 4, -1], [0, DECISION, 29, 5, 9, 7]]
    )
    found = [network.guided[OWN_LABEL][2][1, 20], network.guided[DECISION][2][0, 29]]
    readout = torch.nn.Linear(CONFIG.head_dim, CONFIG.vocab_size).requires_grad_(False)
    normed = [states / states.square().mean().sqrt() for states in found]
    wanted = sum(-readout(n).log_softmax(0)[told] for n, told in zip(normed, (9, 7), strict=True))
    assert float(network.told_loss(guides, readout)) == pytest.approx(float(wanted), rel=1e-3)


def _attention(network: TinyBitNet, kind: int) -> torch.Tensor:
    """What token 20 of row 1 gives to each token before it."""
    queries, keys = (states[1].detach().double() for states in network.guided[kind][:2])
    return torch.softmax(queries[20] @ keys[:21].T / CONFIG.head_dim**0.5, 0)


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


def test_the_end_of_a_number_is_learned_and_its_digits_are_copied(tokenizer: Tokenizer) -> None:
    call = call_text("pay", {"amount": 4711, "to": "Zoe7", "count": 32}, chosen=False)
    assert re.findall(f"{MARK}(.*?){UNMARK}", call) == ["4711,", 'Zoe7"', "32}"]
    messages = [("user", "Send 4711 dollars to Zoe7, 32 times."), ("assistant", call)]
    row = encode(tokenizer, Sample(messages, "call_values", forced=True))
    tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in row.ids]
    assert "".join(token for token, weight in zip(tokens, row.weights, strict=True) if weight) in (
        '4711,Zoe7",32}}', '4711,Zoe7",32}}</',  # as the tokenizer joins the braces
    )  # fmt: skip
    copied = {place + 1 for kind, place, *_ in row.guides if kind == COPY}
    text = "".join(tokens[i] for i in sorted(copied))
    assert text.startswith("4711,Zoe7")
    assert "32" in text


def test_chunks_are_reproducible_and_pairs_are_aligned(tokenizer: Tokenizer) -> None:
    assert chunk_rows(tokenizer, 0, 4, False, 500, 900) == chunk_rows(tokenizer, 0, 4, False, 500, 900)
    pairs = passage_pairs(tokenizer, 0, 1, 8)
    assert pairs.ids.shape == pairs.real.shape
    assert pairs.ids.shape[0] == 16


def test_other_processes_make_the_same_batches(tokenizer: Tokenizer, tmp_path: Path) -> None:
    drawn = []
    for workers in (0, 2):
        options = TrainOptions(tokens_per_batch=8000, early_steps=1, workers=workers)
        trainer = Trainer(tokenizer, CONFIG, options, tmp_path)
        with contextlib.closing(trainer._batches()) as batches:
            ids = [next(batches).ids for _ in range(3)]
            trainer.step = 1  # the chunks that were made in advance are of the mix of before
            while trainer.chunk < 3:
                ids.append(next(batches).ids)
        drawn.append(ids)
    assert len(drawn[0]) == len(drawn[1]) > 10
    assert all(torch.equal(*both) for both in zip(*drawn, strict=True))


def test_rounding_is_the_identity_to_the_backward_pass() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 32, requires_grad=True)
    norm = torch.rand(32).add(0.5).requires_grad_()
    weights = [torch.randn(rows, 32, requires_grad=True) for rows in (6, 3)]
    upstream = torch.randn(5, 9)
    norm_bit_linear(x, norm, weights, 1e-5, torch.float32).backward(upstream)
    found = [tensor.grad for tensor in (x, norm, *weights)]
    normed = rms_norm(x, norm, 1e-5)
    integers, factor = quantise_activations(normed.detach())
    rounded = torch.cat([torch.mul(*ternary(weight.detach())) for weight in weights])
    expected = torch.autograd.grad(normed, (x, norm), upstream @ rounded)
    for ours, theirs in zip(
        found, (*expected, *(upstream.T @ (integers * factor)).split((6, 3))), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("default")  # torch warns of its own parts, and filters that itself
def test_compiled_layers_compute_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        merge([encode(tokenizer, sample) for sample in tools(Source("train", seed))]) for seed in range(3)
    ]
    found = []
    for compile_layers in (False, True):
        trainer = Trainer(tokenizer, CONFIG, TrainOptions(compile=compile_layers, matmul="float32"), tmp_path)
        loss = torch.stack([_answers_loss(trainer.model, collate([row])) for row in rows]).sum()
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters()]
        found.append((loss.item(), torch.cat(gradients)))
    (loss_eager, eager), (loss_compiled, compiled) = found
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert loss_compiled == pytest.approx(loss_eager, rel=1e-3)
    assert float(torch.linalg.vector_norm(compiled - eager)) < 0.05 * float(torch.linalg.vector_norm(eager))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_resumes_and_its_file_runs(tokenizer: Tokenizer, tmp_path: Path, device: str) -> None:
    options = TrainOptions(
        steps=4, early_steps=2, evaluate_every=4, pairs=4, pairs_every=2, seed=1, device=device
    )
    first = Trainer(tokenizer, CONFIG, options, tmp_path)
    first.step = 2  # as if stopped half way
    first.save()
    second = Trainer(tokenizer, CONFIG, options, tmp_path)
    second.resume()
    assert second.step == 2
    second.run()
    assert torch.load(second.checkpoint, weights_only=True)["step"] == 4
    output = tmp_path / "tiny.gguf"
    export([second.checkpoint], tokenizer, output)
    text = 'Привет, world 42! {"a": 1}'
    with BitNet(output) as model:
        assert model.tokenize(text, add_special=False) == text_ids(tokenizer, text)
        with torch.no_grad():
            ids = model.tokenize(text)
            expected = second.model(torch.tensor([ids], device=device)).cpu().numpy()
        found = model.logits(ids)
        assert abs(found - expected).max() < 0.05 * abs(expected).max()


@pytest.mark.parametrize(("steps", "saved"), [(4, 3), (6, 6)])
def test_an_interrupted_run_is_saved_once_the_checkpoint_is_its_own(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, saved: int
) -> None:
    options = TrainOptions(early_steps=0, save_every=5, tokens_per_batch=64, batches_per_step=1)
    trainer = Trainer(tokenizer, CONFIG, options, tmp_path)
    trainer.step = 3
    trainer.save()
    trainer.step = 0
    update = trainer._update

    def interrupted(batches: list[Batch]) -> float:
        if trainer.step == steps:
            raise KeyboardInterrupt
        return update(batches)

    monkeypatch.setattr(trainer, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert torch.load(trainer.checkpoint, weights_only=True)["step"] == saved


def test_a_file_can_have_the_mean_of_several_checkpoints(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainers = [
        Trainer(tokenizer, CONFIG, TrainOptions(seed=seed), tmp_path / str(seed)) for seed in range(3)
    ]
    for trainer in trainers:
        trainer.folder.mkdir()
        trainer.save()
    export([trainer.checkpoint for trainer in trainers], tokenizer, tmp_path / "mean.gguf")
    found = read_weights(tmp_path / "mean.gguf")
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        each = [trainer.model.state_dict()[name] for trainer in trainers]
        assert not torch.equal(each[0], each[1])
        mean = (each[0] + each[1] + each[2]) / 3
        in_file = found[name]
        if "proj" in name:  # ternary in the file
            mean, in_file = (torch.mul(*ternary(weight)) for weight in (mean, in_file))
        assert torch.allclose(in_file, mean, rtol=1e-3, atol=1e-4)
    other = Trainer(tokenizer, replace(CONFIG, num_hidden_layers=3), TrainOptions(), tmp_path)
    other.save()
    with pytest.raises(ValueError, match="not all of the same size"):
        export([trainers[0].checkpoint, other.checkpoint], tokenizer, tmp_path / "mean.gguf")


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of all logits, relative. The largest says little: a sum in another order may round an activation
    differently, and that others behind it."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_run_goes_on_from_a_file(tmp_path: Path) -> None:
    file = bundled.path()
    tokenizer, config = read_tokenizer(file), read_config(file)
    text = 'Привет, world 42! {"a": 1} <tool_call> x\n\n  y'
    trainer = Trainer(tokenizer, config, TrainOptions(), tmp_path)
    trainer.start_from(file)
    larger = replace(config, num_hidden_layers=config.num_hidden_layers + 2)
    grown = Trainer(tokenizer, larger, TrainOptions(), tmp_path)
    grown.start_from(file)
    with torch.no_grad():
        for layer in grown.model.blocks[2:4]:  # those that were added: without them it is the same network
            layer.self_attn.attn_sub_norm.weight.zero_()
            layer.mlp.ffn_sub_norm.weight.zero_()
    with BitNet(file) as model:
        assert model.tokenize(text, add_special=False) == text_ids(tokenizer, text)
        ids = model.tokenize(text)
        expected = model.logits(ids)
    for network in (trainer.model, grown.model):
        with torch.no_grad():
            found = network(torch.tensor([ids])).numpy()
        assert distance(found, expected) < 0.08
    trainer.save()
    export([trainer.checkpoint], tokenizer, tmp_path / "again.gguf")
    with BitNet(tmp_path / "again.gguf") as model:
        assert distance(model.logits(ids), expected) < 0.08
    with torch.no_grad():
        layers = trainer.model.blocks
        layers[4].load_state_dict(layers[5].state_dict())  # what a wrong network is like
        assert distance(trainer.model(torch.tensor([ids])).numpy(), expected) > 0.2
    fewer = replace(config, num_hidden_layers=4)
    more = config.num_hidden_layers - 4
    with pytest.raises(
        ValueError, match=f"the file has {config.num_hidden_layers} layers, {more} more than asked for"
    ):
        Trainer(tokenizer, fewer, TrainOptions(), tmp_path).start_from(file)


def test_layers_that_a_file_has_can_be_kept(tmp_path: Path) -> None:
    file = bundled.path()
    config = read_config(file)
    larger = replace(config, num_hidden_layers=config.num_hidden_layers + 1)
    trainer = Trainer(read_tokenizer(file), larger, TrainOptions(warmup_steps=1), tmp_path)
    trainer.keep(file)
    trainer.start_from(file)
    with pytest.raises(ValueError, match="no layer was added"):
        Trainer(read_tokenizer(file), config, TrainOptions(), tmp_path).keep(file)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer._update([next(trainer._batches())])
    after = trainer.model.state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert len(changed) > 8
    assert all(name.startswith("model.layers.2.") for name in changed)
