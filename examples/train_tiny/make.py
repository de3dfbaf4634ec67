"""Make the bundled model from nothing: tokenizer, training, GGUF file, evaluation.

python examples/train_tiny/make.py            # everything
python examples/train_tiny/make.py --help     # what can be changed
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tiny_bitnet.corpus import tokenizer_texts
from tiny_bitnet.evaluate import evaluate
from tiny_bitnet.export import export
from tiny_bitnet.model import ModelConfig
from tiny_bitnet.tokenizer import load_tokenizer, train_tokenizer
from tiny_bitnet.train import TrainOptions, train
from tiny_bitnet.warm_start import read_config, read_tokenizer

STAGES = ("tokenizer", "train", "export", "evaluate")


def arguments() -> argparse.Namespace:
    defaults = TrainOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("tiny_run"), help="checkpoints and results")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="do only these")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--start", type=Path, help="a GGUF file made here, to go on from instead of nothing")
    parser.add_argument(
        "--added-only", action="store_true", help="train only layers that --start's file has not"
    )
    parser.add_argument(
        "--mean-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="other checkpoints of this tokenizer: the file gets the mean of their weights and the folder's",
    )
    parser.add_argument("--output", type=Path, help="the GGUF file (default: bitnet-tiny.gguf in the folder)")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=0, help="let the decay take so long, not steps")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument(
        "--layers",
        type=int,
        help=f"(default: as many as --start's file has, or {ModelConfig.num_hidden_layers} without one)",
    )
    parser.add_argument("--ffn", type=int, default=ModelConfig.intermediate_size)
    parser.add_argument("--vocab", type=int, default=ModelConfig.vocab_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", default=defaults.device, help="auto, cpu, cuda")
    parser.add_argument("--matmul", default=defaults.matmul, choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers: takes minutes, makes training faster"
    )
    parser.add_argument(
        "--workers", type=int, default=defaults.workers, help="processes that make the text, for a GPU"
    )
    options = parser.parse_args()
    if options.start and (options.vocab, options.ffn) != (
        ModelConfig.vocab_size,
        ModelConfig.intermediate_size,
    ):
        parser.error("--vocab and --ffn are those of --start's file; only --layers can be more")
    if options.mean_with and "export" not in options.stages:
        parser.error("--mean-with is for the file that the export stage writes")
    if options.added_only and not options.start:
        parser.error("--added-only needs --start: the file whose layers are kept")
    if options.added_only and options.layers is None:
        parser.error("--added-only needs --layers: more than --start's file has")
    return options


def make_tokenizer(path: Path, vocab_size: int, seed: int, start: Path | None) -> None:
    tokenizer = read_tokenizer(start) if start else train_tokenizer(tokenizer_texts(seed), vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer_path = options.folder / "tokenizer.json"
    if "tokenizer" in options.stages and not (options.resume and tokenizer_path.exists()):
        make_tokenizer(tokenizer_path, options.vocab, options.seed, options.start)
    tokenizer = load_tokenizer(tokenizer_path)
    if "train" in options.stages:
        if options.start:
            config = read_config(options.start)
        else:
            config = ModelConfig(
                vocab_size=tokenizer.get_vocab_size(),
                intermediate_size=options.ffn,
            )
        if options.layers is not None:
            config = replace(config, num_hidden_layers=options.layers)
        train_options = TrainOptions(
            steps=options.steps,
            minutes=options.minutes,
            learning_rate=options.learning_rate,
            seed=options.seed,
            device=options.device,
            matmul=options.matmul,
            compile=options.compile,
            workers=options.workers,
        )
        try:
            train(
                tokenizer,
                config,
                train_options,
                options.folder,
                options.resume,
                options.start,
                options.added_only,
            )
        except KeyboardInterrupt:
            sys.exit("Stopped; --resume goes on.")
    output = options.output or options.folder / "bitnet-tiny.gguf"
    if "export" in options.stages:
        export([options.folder / "checkpoint.pt", *options.mean_with], tokenizer, output)
        print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")
    if "evaluate" in options.stages:
        report = evaluate(output)
        (options.folder / "evaluation.md").write_text(report, encoding="utf-8")
        print(report)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped.")
