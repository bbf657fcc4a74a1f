"""CoE: a Composition of Experts behind one OpenAI-compatible endpoint.

Importing the package disables the usage reports of the libraries and servers that it runs: some send them by default.
"""

import os

__version__ = "0.1.0"

NO_USAGE_REPORTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime reads it when it is imported; it also writes a database below ~/.cache
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of this process, and so of the servers that it starts. Values that the user set are kept."""

for _name, _value in NO_USAGE_REPORTS.items():
    os.environ.setdefault(_name, _value)
