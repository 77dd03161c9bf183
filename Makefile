# make demo    train on drawn scenes and open the report: the whole system in some minutes
# make photos PHOTOS=DIR  train on your photos with captions, from pretrained towers, and report
# make test    the tests that need no patience      make test-slow  real launches and long runs
# make lint    ruff and mypy                        make gpu        everything that needs a GPU
# make soak    hours: many kills, a million rows    make docs       the documentation, into site/
# make lowest  the quick tests on the lowest releases of other packages that are allowed
# make release  the wheels of the three packages into dist/, each tried in an environment of its own
# make lock    renew uv.lock, the tested set      make resolve  what all systems and Pythons would get
# make golden  write the golden losses anew; CONTRIBUTING.md says when that is right

PYTHON ?= python3
BIN := .venv/bin
RANKS ?= 2
DEMO := runs/demo
RECIPE := launch/recipes/demo.yaml
PHOTOS ?=
UV ?= uv

# Without an NVIDIA GPU, PyTorch's own CPU build saves gigabytes of CUDA packages. A pip that is
# configured for other package sources keeps them.
ifeq ($(wildcard /proc/driver/nvidia)$(PIP_FIND_LINKS)$(PIP_CONFIG_FILE),)
TORCH := --find-links https://download.pytorch.org/whl/cpu/torch/
endif

.DEFAULT_GOAL := help
.PHONY: help demo photos test test-slow soak lowest lock resolve release golden lint gpu docs clean

help:
	@sed -n 's/^# make/make/p' Makefile

.venv/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PYTHON) launch/heartbeat.py "installing what vse_scale needs into .venv (once)" \
		$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) -c constraints.txt -e '.[dev]'
	@touch $@

data/demo/source/captions.jsonl: | .venv/.ready
	@$(BIN)/vse-shards demo --images 12500 --out data/demo/source

data/demo/shards/manifest.json: data/demo/source/captions.jsonl
	@$(BIN)/vse-shards build --source jsonl --input data/demo/source/captions.jsonl \
		--images data/demo/source --out data/demo/shards

demo: .venv/.ready data/demo/shards/manifest.json
	@$(BIN)/vse-scale train --ranks $(RANKS) --config $(RECIPE)
	@$(BIN)/vse-scale eval --model $(DEMO)/model --data data/demo/shards --split val
	@$(BIN)/vse-scale report --run $(DEMO)

# Without PHOTOS a run goes on with what was laid out before.
photos:
	@$(if $(PHOTOS)$(wildcard data/photos/shards/manifest.json),,$(PYTHON) launch/photos.py)
	@$(if $(PHOTOS),$(PYTHON) launch/photos.py "$(PHOTOS)")
	@$(MAKE) --no-print-directory .venv/.photos
	@$(if $(PHOTOS),$(BIN)/python launch/photos.py "$(PHOTOS)" data/photos)
	@$(BIN)/python launch/photos.py --fit data/photos
	@$(BIN)/vse-scale train --ranks $(RANKS) --config data/photos/recipe.yaml
	@$(BIN)/vse-scale eval --model runs/photos --data data/photos/shards --split val
	@$(BIN)/vse-scale report --run runs/photos

.venv/.photos: .venv/.ready
	@$(PYTHON) launch/heartbeat.py "installing two pretrained towers (once)" \
		$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) -c constraints.txt -e '.[dev,photos]'
	@touch $@

test: .venv/.ready
	$(BIN)/pytest -n 2 -m "not slow and not soak"

test-slow: .venv/.ready
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not soak"

soak: .venv/.ready
	$(BIN)/pytest -m soak --timeout 0

lowest:
	@$(PYTHON) -m venv --clear .venv-lowest
	@$(PYTHON) tests/house/lowest.py > .venv-lowest/lowest.txt
	@$(PYTHON) launch/heartbeat.py "installing the lowest releases into .venv-lowest" \
		.venv-lowest/bin/pip install --quiet --disable-pip-version-check $(TORCH) \
		-c .venv-lowest/lowest.txt -e '.[dev]'
	.venv-lowest/bin/pytest -n 2 -m "not slow and not soak"

release:
	@bash launch/release.sh $(PYTHON) $(TORCH)

# MLflow's own pyarrow keeps that of the tested set from being named for all.
lock:
	$(UV) lock $$(sed -n '/pyarrow/!s/^\([a-z0-9-]*==[^ ]*\).*/--upgrade-package \1/p' constraints.txt)

# Nothing is installed. Shards are for all systems, models for macOS too, training for Linux.
resolve:
	@for version in 3.11 3.12 3.13 3.14; do \
		for asked in "shards/pyproject.toml x86_64-pc-windows-msvc" \
			"shards/pyproject.toml aarch64-apple-darwin" "pyproject.toml aarch64-apple-darwin" \
			"pyproject.toml x86_64-unknown-linux-gnu --extra train"; do \
			set -- $$asked; file=$$1; platform=$$2; shift 2; \
			found=$$($(UV) pip compile -q --no-header --no-annotate --python-version $$version \
				--python-platform $$platform "$$@" $$file) || exit 1; \
			echo "Python $$version $$platform $$file $$*: $$(echo "$$found" | wc -l) packages"; \
		done; done

golden: .venv/.ready
	PYTHONPATH=tests/support $(BIN)/python tests/golden/renew.py

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: .venv/.ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/gpu/run.sh

docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf runs/demo data/demo site
