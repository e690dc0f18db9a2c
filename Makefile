# Every target needs only Python 3.11 or later; it installs everything else into .venv.
# For torch's CPU build:  make install PIP_INSTALL_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up docs reference test test-fast test-browser promtool fuzz fuzz-headers lint format bench bench-gpu sim chaos lock lock-images audit sbom score-tiny score-edits clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED) ## install the locked dependencies into .venv

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_INSTALL_ARGS) --constraint constraints.txt --editable '.[api,worker,otel,mcp,provenance,embedded,dev]'
	touch $(INSTALLED)

demo: install ## render the example request on this host and show the pictures
	$(BIN)/flux2 demo --output demo-output

up: install ## start the whole service on this host, until Ctrl-C
	$(BIN)/flux2 up

docs: install ## build the documentation as a site in ./site
	$(BIN)/zensical build --strict

reference: install ## write the parts of the documentation that follow from the code
	$(BIN)/python -m tools.reference

# Three processes share the files, because many tests wait. Each computes with one thread, and a thread that waits sleeps:
# threads that spin starve each other where they outnumber the cores (a test took 500 s instead of 70). The processes that
# the tests start keep what they compile, although the environment may say otherwise.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 3

test: install promtool ## run all tests on real Redis and S3
	$(PYTEST)

test-fast: install ## run the unit and integration tests, but not those that start the whole service
	$(PYTEST) tests/unit tests/integration

# One process: it shares a browser and its servers. A view that is too slow for two cores must not look so for lack of them.
test-browser: install ## run the tests of the console in Chromium, and install it first where apt-get may; make test runs them if one is there
	$(BIN)/python -m tools.chromium
	$(BIN)/python -m pytest -n 0 tests/browser

promtool: $(VENV)/.promtool-tried ## fetch Prometheus' promtool on Debian and Ubuntu; without it, some tests are skipped

# Tried once, because it waits for the network where there is one.
$(VENV)/.promtool-tried: $(INSTALLED)
	@tools/fetch_promtool.sh $(BIN)/promtool || echo "promtool cannot be had here: alerts and metrics are checked without it"
	@touch $@

EXAMPLES ?= 20000
FUZZ_SECONDS ?= 300
FUZZ_EXAMPLES ?= 2000

fuzz: install ## send sound and broken calls to a live API as five callers for FUZZ_SECONDS=300, and try FUZZ_EXAMPLES=2000 texts in each place
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) --timeout 3600 tests/unit/test_fuzz_addresses.py tests/unit/test_fuzz_texts.py tests/integration/test_fuzz_headers.py

fuzz-headers: install ## compare the check of adapter headers with the safetensors library's; EXAMPLES=200000 is the long run
	FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) --timeout 3600 tests/unit/test_shared_adapters_header_fuzz.py

lint: install ## run ruff, mypy --strict and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measure the queue on this host: accept, status, queue to start, adapter swap, memory, 200 pollers, 200 streams of events, claims, what a slot and a scrape cost Redis, adapter files and their sources, a batch file of 10,000 lines
	$(BIN)/python -m benchmarks.queue
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.listeners
	$(BIN)/python -m benchmarks.claims
	$(BIN)/python -m benchmarks.background
	$(BIN)/python -m benchmarks.scrape
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.sources
	$(BIN)/python -m benchmarks.batch

bench-gpu: install ## measure full-size FLUX.2 with random weights on the GPU, and AI Toolkit if AI_TOOLKIT_PATH is set
	$(BIN)/python -m benchmarks.gpu --full $(BENCH_ARGS)

sim: install ## simulate the scheduling of fleets on a virtual clock, and fail if it misses a bar
	$(BIN)/python -m benchmarks.scheduling $(SIM_ARGS)

JOBS ?= 300

chaos: install ## kill, freeze, cut off and fill everything, and check every promise; JOBS=1000 is the long run
	$(BIN)/python -m chaos --jobs $(JOBS) $(CHAOS_ARGS)

lock: install ## write constraints.txt from the installed packages
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

lock-images: install ## write the locks of the container images, with hashes, from constraints.txt and PyPI
	$(BIN)/python -m tools.supply_chain.lock

PIP_AUDIT := pip-audit==2.10.1

audit: install ## look for known vulnerabilities in everything that is locked, and with pip-audit where PyPI answers
	$(BIN)/python -m tools.supply_chain.audit $(AUDIT_ARGS)
	@$(PYTHON) -m venv $(VENV)/audit
	@if $(VENV)/audit/bin/python -m pip install --quiet $(PIP_AUDIT); then \
		for lock in constraints.txt deploy/api.lock deploy/worker.lock; do \
			$(VENV)/audit/bin/pip-audit --disable-pip --no-deps --requirement $$lock || exit 1; \
		done; \
	else echo "pip-audit cannot be installed here: only the advisories above were looked at"; fi

sbom: install ## write the bill of materials of each container image (CycloneDX) and the licences into sbom/
	$(BIN)/python -m tools.supply_chain.sbom sbom

score-tiny: install ## render 60 prompts that the demonstration model never saw and measure the pictures
	$(BIN)/python -m benchmarks.score_tiny

score-edits: install ## edit 24 reference images that the demonstration model never saw and measure the pictures
	$(BIN)/python -m benchmarks.score_edits

clean: ## remove everything that the other targets made
	rm -rf $(VENV) .flux2 demo-output sbom site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
