# `make check` is what .ci/run checks, in the environment that is active.

.PHONY: check lint test format

check: lint test

lint:
	ruff check .
	ruff format --check .
	mypy --strict edgekit
	lint-imports

test:
	EDGEKIT_STRICT_SKIPS=1 pytest

format:
	ruff check --fix .
	ruff format .
