# Two commands matter: `make serve` and `make test`. Each sets itself up first; a second run skips what is done.
.PHONY: serve test test-clients test-vllm setup check docs reference clean

serve: setup
	@.venv/bin/coe up

test: setup
	@scripts/test

test-clients: setup
	@scripts/test-clients

test-vllm: setup
	@scripts/test-vllm

setup:
	@scripts/setup

check: setup
	@scripts/check

docs: setup
	@.venv/bin/python scripts/docs.py

reference: setup
	@.venv/bin/python -m scripts.reference

clean:
	rm -rf .venv .venv-clients .venv-vllm build/docs build/doctrees
