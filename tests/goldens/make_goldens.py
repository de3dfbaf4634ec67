"""Writes the goldens: for each case, token ids and the logits that transformers and NumPy compute for them.

Run it from anywhere (needs torch and transformers); it takes about a minute. Change a golden only together
with the case it belongs to: our engine never writes one.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent
sys.path.insert(0, str(GOLDENS.parent))

from reference.cases import CASES  # noqa: E402
from reference.hf_model import hf_logits, hf_model  # noqa: E402
from reference.model_factory import random_model, write_gguf  # noqa: E402
from reference.numpy_model import NumpyModel  # noqa: E402

SEQUENCES, LENGTH = 2, 8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in CASES.items():
            model = random_model(spec)
            path = write_gguf(model, Path(folder) / f"{name}.gguf")
            numpy_model, transformers_model = NumpyModel(path), hf_model(model)
            # Sequences on which no rounding hangs on float noise, so that the comparison can be strict.
            token_ids = [numpy_model.decided_sequence(LENGTH, seed) for seed in range(SEQUENCES)]
            np.savez_compressed(
                GOLDENS / f"{name}.npz",
                token_ids=np.array(token_ids, dtype=np.int32),
                numpy=np.stack([numpy_model.forward(ids) for ids in token_ids]).astype(np.float32),
                transformers=np.stack([hf_logits(transformers_model, ids) for ids in token_ids]),
                gguf_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            print(name)


if __name__ == "__main__":
    main()
