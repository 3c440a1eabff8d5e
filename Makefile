# The developer's interface: every target is a few lines; the work is done by scripts and the package.
.PHONY: setup demo quickstart example-tools example-gym test fuzz test-browser test-gpu test-containers test-slurm lint

py := .venv/bin/python
gpu_py ?= python3
grpo := .venv/bin/grpo-hpc

setup:
	@tools/env/setup.sh

demo: setup
	@$(py) tools/make_demo_model.py
	@$(py) tools/make_addition.py

quickstart: demo
	@$(grpo) plan configs/quickstart.yaml
	@$(grpo) submit configs/quickstart.yaml --fresh

# Episodes of several turns, in the style of the quickstart: a calculator as a tool, and a game.
example-tools: demo
	@$(py) tools/make_multiplications.py
	@$(grpo) submit configs/quickstart_tools.yaml --fresh

example-gym: demo
	@$(py) tools/make_lakes.py
	@$(grpo) submit configs/quickstart_gym.yaml --fresh

# Two at a time: much of a test's time is starting processes. The long ones begin first.
test: setup
	@$(py) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# New cases of every target for ten minutes; the account is written to build/fuzz.md.
fuzz: setup
	@$(py) -m pytest -n 2 --hypothesis-profile=long tests/fuzz

test-browser: setup
	@tools/browser/install.sh
	@$(py) -m pytest tests/browser

# Four files at a time, on however many GPUs there are: most of it is starting processes here, too.
test-gpu:
	@$(gpu_py) -m pytest -m gpu -n 4 --dist loadfile tests/gpu

test-containers: setup
	@tools/containers/install.sh podman apptainer docker
	@$(py) -m pytest tests/containers

test-slurm: setup
	@tools/slurm/install.sh
	@tools/containers/install.sh podman apptainer docker
	@$(py) -m pytest tests/slurm

lint: setup
	@$(py) -m ruff check . && $(py) -m ruff format --check . && $(py) -m mypy
