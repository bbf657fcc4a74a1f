"""LoRA adapters as folders, without the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson


def adapter(folder: Path, **config: Any) -> Path:
    """A folder as PEFT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(orjson.dumps({"peft_type": "LORA", "r": 8, **config}))
    return folder
