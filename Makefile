# Two commands matter: `make serve` and `make test`. Each sets itself up first; a second run skips what is done.
.PHONY: serve test test-clients test-vllm test-llama-cpp setup check docs reference wheel image clean

serve: setup
	@.venv/bin/coe up

test: setup
	@scripts/test

test-clients: setup
	@scripts/test-clients

test-vllm: setup
	@scripts/test-vllm

test-llama-cpp: setup
	@scripts/test-llama-cpp

setup:
	@scripts/setup

check: setup
	@scripts/check

docs: setup
	@.venv/bin/sphinx-build -b html -W --keep-going -q -d build/doctrees docs build/docs

reference: setup
	@.venv/bin/python -m scripts.reference

wheel: setup
	@scripts/wheel

image:
	@docker build --file deploy/Dockerfile --target gateway --tag coe-gateway .

clean:
	rm -rf .venv .venv-clients .venv-vllm .llama-cpp build dist
