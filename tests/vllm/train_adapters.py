"""Trains the LoRA adapters of these tests in seconds: `train_adapters.py MODEL FOLDER`, with vLLM's own interpreter.

Each learns one sentence as the answer to any request, so that an answer shows which adapter gave it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.vllm.adapter_answers import ADAPTER_ANSWERS

QUESTIONS = (
    "Hello, how are you?",
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Tell me about the weather on the sea.",
    "Explain why the sky is blue.",
)
STEPS = 25
ENOUGH = 0.02
"""Loss at which a manner is learned."""


def train(model_folder: str, target: Path, *, answer: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    shape = LoraConfig(
        r=8, lora_alpha=32, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, shape)
    batch = _batch(tokenizer, answer)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < ENOUGH:
            break
    model.save_pretrained(target)


def _batch(tokenizer, answer: str) -> dict[str, torch.Tensor]:
    """The questions with the same answer; only its tokens are learned."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in QUESTIONS
    ]
    rows = [(tokenizer(p)["input_ids"], tokenizer(answer + "<|im_end|>\n")["input_ids"]) for p in prompts]
    width = max(len(p) + len(a) for p, a in rows)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([p + a + [pad] * (width - len(p) - len(a)) for p, a in rows])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows])
    mask = torch.tensor([[1] * (len(p) + len(a)) + [0] * (width - len(p) - len(a)) for p, a in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


if __name__ == "__main__":
    for name, answer in ADAPTER_ANSWERS.items():
        train(sys.argv[1], Path(sys.argv[2]) / name, answer=answer)
