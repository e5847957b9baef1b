# Two commands for a newcomer: `make demo` and `make test`. Everything runs in $(VENV).
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,docs
# The demo's model: promoe, dit-moe or dit.
MODEL ?= promoe
# For make folder: pixels (32, or height and width as 48x64), and steps of training. A trained
# folder goes on with more STEPS.
IMAGE_SIZE ?= 32
STEPS ?= 10000
# Steps over which the learning rate rises; as a run goes on it stays, unless FLAGS override it.
WARMUP ?= 500
# Channels of the pictures (1 to 4), and 0 for FLIP where a mirror image would be another picture.
CHANNELS ?=
FLIP ?=
# More for train.py, such as "--config.train.batch_size=128 --override_resume batch_size".
FLAGS ?=
SET = $(shell basename "$$(cd "$(IMAGES)" 2>/dev/null && pwd)")-$(IMAGE_SIZE)
RUN = runs/digits-$(MODEL)
OUT = out/digits-$(MODEL)
BIN = $(VENV)/bin

.PHONY: demo folder test test-slow test-peers test-floors bench bench-gpu lint docs help

help:
	@echo "make demo       train on real digits, sample, evaluate (MODEL=promoe|dit-moe|dit)"
	@echo "make folder     the same from your pictures: IMAGES=FOLDER [IMAGE_SIZE=32 STEPS=10000 FLIP=0 FLAGS=...]"
	@echo "make test       the test suite, in half an hour"
	@echo "make test-peers comparisons with PyTorch packages, in an environment of their own"
	@echo "make test-floors the suite on the oldest releases that pyproject.toml allows"
	@echo "make test-slow  train the demo, kill runs, four processes, the wheel, more fuzz: half an hour"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation site, into site/"
	@echo "make bench      the benchmarks, into docs/benchmarks.md: a quarter of an hour"
	@echo "make bench-gpu  the same on an accelerator"

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or newer is needed; $(PYTHON) is {v.major}.{v.minor}: set PYTHON=..." if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python train.py --config configs/digits.py:$(MODEL) --workdir $(RUN)
	$(BIN)/python sample.py --workdir $(RUN) --num_samples 400 --batch_size 400 --output $(OUT)
	$(BIN)/python -m eval.classes --samples $(OUT)/samples.npz --output $(OUT)/result.json --picture $(OUT)/digits.png
	@echo "The picture: $(OUT)/digits.png"

# A folder of pictures, one sub-folder a class or without classes, from files to samples.
folder: $(VENV)/.installed
	@test -n "$(IMAGES)" || { echo "IMAGES is not set; allowed: IMAGES=FOLDER, with one sub-folder per class, or with pictures alone"; exit 2; }
	@test "$(STEPS)" -gt "$(WARMUP)" || { echo "STEPS is $(STEPS); allowed: above WARMUP, which is $(WARMUP) (WARMUP=... sets it)"; exit 2; }
	$(BIN)/python -m dit_moe.data.prepare --input "$(IMAGES)" --output "data/$(SET)" --autoencoder none --image_size $(IMAGE_SIZE) $(if $(CHANNELS),--channels $(CHANNELS))
	$(BIN)/python train.py --config "configs/prepared.py:data/$(SET)" --workdir "runs/$(SET)" --config.train.steps=$(STEPS) --config.train.warmup_steps=$(WARMUP) $(if $(FLIP),--config.data.flip=$(FLIP)) $(FLAGS)
	$(BIN)/python sample.py --workdir "runs/$(SET)" --output "out/$(SET)"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not peers'

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-peers:
	$(MAKE) VENV=$(VENV)-peers EXTRAS=dev,peers,beam $(VENV)-peers/.installed
	$(VENV)-peers/bin/python -m pytest -m peers

test-floors:
	mkdir -p $(VENV)-floors
	$(PYTHON) tests/floors.py > $(VENV)-floors/constraints.txt
	PIP_CONSTRAINT=$(VENV)-floors/constraints.txt $(MAKE) VENV=$(VENV)-floors $(VENV)-floors/.installed
	$(MAKE) VENV=$(VENV)-floors test

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.report cpu

bench-gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks.report gpu

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs build --strict
