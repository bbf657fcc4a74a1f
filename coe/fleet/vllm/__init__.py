"""vLLM servers: command line, LoRA adapters, sleep mode."""
