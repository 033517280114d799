# Every target first installs what it needs into .venv, or names what is missing.
.PHONY: demo serve test peers soak fuzz packages pythons check format bench lock release clean
PY := .venv/bin/python
ARGS ?=

demo: ## the service on this machine, with a SIP phone in place of a carrier
	@scripts/setup run
	@.venv/bin/bitel demo $(ARGS)

serve: ## the service in the foreground, with ./bitel.toml if there is one
	@scripts/setup run
	@.venv/bin/bitel serve $(ARGS)

test: ## every test; many of them wait for other processes, so four run at once on two cores
	@scripts/setup dev
	@$(PY) -m pytest -n 4 --dist worksteal $(ARGS)

peers: ## install the other SIP stacks, run the tests that call them, and write docs/interop.md
	@scripts/setup dev
	@scripts/peers
	@$(PY) -m scripts.interop_docs $(ARGS)

soak: ## the long tests, then runs with injected faults, of one process (ARGS) and of several
	@scripts/setup dev
	@$(PY) -m pytest -m soak -n 2
	@$(PY) -m tests.chaos $(ARGS)
	@$(PY) -m tests.chaos.fleet --calls 1000

fuzz: ## malformed input for SIP, SDP, RTP, forms and the journal, a minute each; see tests/fuzz
	@scripts/setup dev
	@$(PY) -m tests.fuzz $(ARGS)

packages: ## build the wheel, install it by pip alone, and make a release in a clone
	@scripts/setup dev
	@$(PY) -m pytest -m packages $(ARGS)

pythons: ## the wheel, the demo and some of the tests on every Python 3.11 to 3.14 that is found
	@scripts/setup dev
	@$(PY) -m scripts.pythons $(ARGS)

check: ## format, lint, types, import rules
	@scripts/setup dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format:
	@scripts/setup dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: ## every figure of docs/performance.md, one bench after the other
	@scripts/setup dev
	@$(PY) -m bench $(ARGS)

lock: ## resolve the requirements again
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --upgrade --extra server --extra postgres --extra speech --group build -o requirements/run.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra server --extra postgres --extra speech --group build --group dev -c requirements/run.txt -o requirements/dev.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --upgrade --group pyproject.toml:peers -o requirements/peers.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --upgrade --group pyproject.toml:generator -o requirements/generator.txt

release: ## changelog, version, commit, tag, wheel and sdist: make release VERSION=0.2.0
	@scripts/setup dev
	@$(PY) -m scripts.release $(VERSION)

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
