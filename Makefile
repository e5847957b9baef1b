# Two commands for a newcomer: `make demo` and `make test`. Everything runs in $(VENV).
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
# The demo's model: promoe, dit-moe or dit.
MODEL ?= promoe
RUN = runs/digits-$(MODEL)
OUT = out/digits-$(MODEL)
BIN = $(VENV)/bin

.PHONY: demo test test-slow bench lint help

help:
	@echo "make demo       train on real digits, sample, evaluate (MODEL=promoe|dit-moe|dit)"
	@echo "make test       the test suite"
	@echo "make test-slow  train the demo and hold it to its promises"
	@echo "make lint       ruff and pyright"
	@echo "make bench      the benchmarks"

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or newer is needed; $(PYTHON) is {v.major}.{v.minor}: set PYTHON=..." if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python train.py --config configs/digits.py:$(MODEL) --workdir $(RUN)
	$(BIN)/python sample.py --workdir $(RUN) --num_samples 400 --batch_size 400 --output $(OUT)
	$(BIN)/python -m eval.digits --samples $(OUT)/samples.npz --output $(OUT)/result.json --picture $(OUT)/digits.png
	@echo "The picture: $(OUT)/digits.png"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/moe_layer.py --experts 8 32
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/rematerialisation.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
