# SPDX-License-Identifier: MIT
"""Wrote the files beside it, with NumPy 2.5.2, ml_dtypes 0.6.0, PyTorch 2.11.0, safetensors 0.8.0
and huggingface_hub: routers of three layers in three types, and layer_*.npy, the same as float32.
"""
import os

import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict

generator = torch.Generator().manual_seed(7)
tensors = {
    f"model.layers.{layer}.mlp.gate.weight": torch.randn(6, 5, generator=generator).to(dtype)
    for layer, dtype in ((0, torch.float32), (1, torch.float16), (10, torch.bfloat16))
}
tensors["model.norm.weight"] = torch.ones(5)
safetensors.torch.save_file(tensors, "model.safetensors", metadata={"format": "pt"})
os.makedirs("sharded", exist_ok=True)
save_torch_state_dict(tensors, "sharded", max_shard_size=150)
for layer in (0, 1, 10):
    weights = tensors[f"model.layers.{layer}.mlp.gate.weight"].float().numpy()
    np.save(f"layer_{layer}.npy", weights)
np.save("bfloat16.npy", weights.astype(ml_dtypes.bfloat16))
