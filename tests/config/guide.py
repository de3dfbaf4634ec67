"""The bitnet blocks of the Orbit guide, and its table of keys: what must load as it stands."""

from __future__ import annotations

from typing import Any

FULL = """\
bitnet:
  mode: "direct"
  model_path: "models/bitnet-b1.58-3B/ggml-model-i2_s.gguf"
  quant_type: "i2_s"  # Quantization type: i2_s or tl1
  use_pretuned: true  # Use pretuned kernel parameters
  quant_embd: false   # Quantize embeddings to f16

  # Generation parameters
  temperature: 0.7
  top_p: 0.9
  top_k: 40
  max_tokens: 1024

  # Context and threading
  n_ctx: 2048
  n_threads: 8
  n_batch: 2

  # GPU settings
  n_gpu_layers: 0  # Number of layers to offload to GPU
  main_gpu: 0      # Main GPU device
  low_vram: false  # Enable for systems with limited VRAM

  # BitNet-specific optimizations
  kernel_params:
    enable_custom: false
    # Add custom kernel parameters here

  # Memory management
  use_mmap: true
  use_mlock: false

  # Streaming
  stream: true

  # Stop sequences
  stop: []

  # Timeout and retry configuration
  timeout:
    connect: 10000
    total: 120000

  retry:
    enabled: true
    max_retries: 3
    initial_wait_ms: 1000
    max_wait_ms: 30000
    exponential_base: 2
"""

API = """\
bitnet:
  mode: "api"
  base_url: "http://localhost:8080"
  api_key: null  # Optional
  model: "bitnet-b1.58-3B"
  temperature: 0.7
  max_tokens: 1024
"""

GPU = """\
bitnet:
  n_gpu_layers: -1  # Use all layers on GPU
  main_gpu: 0       # Primary GPU
  low_vram: true    # Enable for limited VRAM
"""

MEMORY = """\
bitnet:
  use_mmap: true    # Memory mapping
  use_mlock: false  # Disable memory locking
  low_vram: true    # Low VRAM mode
  n_batch: 1        # Smaller batch size
"""

VERBOSE = """\
bitnet:
  verbose: true
"""

# The table "Configuration Parameters".
DEFAULTS: dict[str, Any] = {
    "mode": "direct",
    "quant_type": "i2_s",
    "use_pretuned": True,
    "quant_embd": False,
    "n_ctx": 2048,
    "n_threads": 8,
    "n_gpu_layers": 0,
    "temperature": 0.7,
    "max_tokens": 1024,
}
