# Two commands matter: `make serve` and `make test`. Each sets itself up first; a second run skips what is done.
.PHONY: serve test setup check clean

serve: setup
	@.venv/bin/coe up

test: setup
	@scripts/test

setup:
	@scripts/setup

check: setup
	@scripts/check

clean:
	rm -rf .venv
