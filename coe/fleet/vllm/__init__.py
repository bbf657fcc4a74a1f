"""vLLM servers: command line, control API and LoRA adapters."""
