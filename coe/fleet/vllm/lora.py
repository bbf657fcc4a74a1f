"""Reads the configuration of a LoRA adapter's folder, and checks whether vLLM can serve it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_ALLOWED_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank`, from its default on (vLLM 0.32)."""


def problem(folder: Path) -> str | None:
    """Why vLLM could not serve this adapter; None if nothing is wrong."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    found = _config(folder)
    if found is None:
        return f"{folder} has no {CONFIG} that can be read; name a folder that PEFT has saved"
    if not any((folder / name).is_file() for name in _WEIGHTS):
        return f"{folder} holds no weights: none of {', '.join(_WEIGHTS)}"
    kind = str(found.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        return f"{folder} is an adapter of type {kind}; vLLM serves LORA alone"
    if found.get("use_dora"):
        return f"{folder} was trained with DoRA, which vLLM does not serve; train it without"
    if not isinstance(found.get("r"), int) or not 1 <= rank(folder) <= _ALLOWED_RANKS[-1]:
        return f"{folder} has the rank {found.get('r')!r}; vLLM serves ranks from 1 to {_ALLOWED_RANKS[-1]}"
    return None


def rank(folder: Path) -> int:
    """The largest rank of its layers; for a folder without a problem."""
    found = _config(folder) or {}
    ranks: list[int] = [found.get("r", 0), *(found.get("rank_pattern") or {}).values()]
    return max(ranks)


def max_rank_for(ranks: list[int]) -> int:
    """The smallest `--max-lora-rank` that allows all of these."""
    return next(allowed for allowed in _ALLOWED_RANKS if allowed >= max(ranks, default=0))


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads((folder / CONFIG).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
