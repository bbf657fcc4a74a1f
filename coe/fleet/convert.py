"""Turns a GGUF file into a safetensors folder with its tokenizer: `python -m coe.fleet.convert FILE FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Writes the bfloat16 model and its tokenizer into `folder`. Imports torch, so run it in a process of its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    assert model.generation_config is not None
    model.generation_config.do_sample = True  # not in GGUF; False would ignore every temperature
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
