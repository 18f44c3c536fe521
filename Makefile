# Everything the project needs is installed into .venv by its own pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-cheetah test check fast-test slow-test extras-test test-versions test-lowest \
  test-newest dist docs docs-serve accelerator-check paper-small solver-study overshoot-study clean

# A first result that is a good one: PreQN swings up a pendulum, in a minute or two.
demo: .venv/installed
	$(BIN)/python -m experiments.train --algorithm=preqn --env=Pendulum-v1 --seeds=0 --num_steps=6000 --eval_every=500 --logdir=runs/demo
	@echo "Look at the return in runs/demo/curve.png: -1500 hangs down, -150 swings up and stays there. Next: make demo-cheetah, or your own --env and --logdir."

# A robot: 20,000 steps are a beginning; 100,000 come to returns of some 3,800
# (docs/results/benchmark.md, "HalfCheetah, all runs").
demo-cheetah: .venv/installed
	$(BIN)/python -m experiments.train --algorithm=preqn --env=HalfCheetah-v5 --seeds=0 --num_steps=20000 --logdir=runs/demo-cheetah
	@echo "Look at runs/demo-cheetah/curve.png: the return has left 0, and the alignment is near 1. Next: the same command with --num_steps=100000 goes on from there."

# Lint, types and the fast tests.
test: check fast-test

fast-test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist=worksteal

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The tests that take minutes: resume on every environment of the paper, learning.
slow-test: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

# Those that need more than the extra `dev`, in an environment of their own; here none is skipped.
EXTRAS ?= brax,playground,wandb,mlflow,ray,submitit,peers,docs
OF_EXTRAS := tests/agents/test_crossq.py tests/training/test_trackers.py tests/envs/test_libraries.py \
  tests/test_own_environments.py tests/test_launch_elsewhere.py tests/test_cost.py \
  tests/test_docs_site.py
extras-test: build/extras/installed
	NO_SKIPS=1 build/extras/bin/python -m pytest -n 2 -m "slow or not slow" $(OF_EXTRAS)

# The fast tests with the lowest of all that pyproject.toml allows, on the oldest Python, and with
# the newest, on the newest Python there is. Each in an environment of its own under build/.
OLDEST ?= python3.11
NEWEST ?= $(shell for v in 14 13 12 11; do python3.$$v -c '' 2>/dev/null && echo python3.$$v && break; done)
test-versions: test-lowest test-newest

test-lowest test-newest: test-%: build/%/installed
	build/$*/bin/python -m pytest -n 2 --dist=worksteal

build/lowest/installed: FROM = $(OLDEST)
build/lowest/installed: RESOLUTION = lowest-direct
build/newest/installed: FROM = $(NEWEST)
build/newest/installed: RESOLUTION = highest
build/extras/installed: FROM = $(PYTHON)
build/extras/installed: RESOLUTION = highest
build/extras/installed: WITH = dev,$(EXTRAS)
build/%/installed: WITH = dev
build/%/installed: pyproject.toml
	$(FROM) -m venv --clear build/$*
	build/$*/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/$*/bin/uv pip install --quiet --python build/$*/bin/python --resolution $(RESOLUTION) -e '.[$(WITH)]'
	touch $@

# What is released: source and wheel, in dist/. The version is pyproject.toml's.
dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build

# The documentation site, which needs no network to be built or read; a warning is an error.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
docs: .venv/installed-docs
	$(MKDOCS) build
	@echo "Open build/site/index.html, or type make docs-serve, where it can be searched."

docs-serve: .venv/installed-docs
	$(MKDOCS) serve

# What is worth knowing of a GPU or TPU, on that machine: how exact K is by the precision of
# products, Cholesky beside eigh, members in one program, and Brax's HalfCheetah from end to end.
CHECKS = build/accelerator
accelerator-check:
	mkdir -p $(CHECKS)
	$(BIN)/python -m experiments.precision --json=$(CHECKS)/precision.json
	$(BIN)/python -m experiments.cost --many=7,35 --json=$(CHECKS)/cost.json
	$(BIN)/python -m experiments.throughput --on_device --env=native/pendulum --members=1,7,35 --json=$(CHECKS)/members.json
	$(BIN)/python -m experiments.throughput --on_device --env=brax/halfcheetah --members=1,7 --json=$(CHECKS)/brax.json
	@echo "Look at $(CHECKS): with TF32 the error of K should stay below the damping of 1e-3; the goals are 30,000 updates a second with 35 members, and seven within 1.5 times of one."

# Figures 2, 3, 10, 12 and 13 at a tenth of the paper's steps, on three of its environments
# (docs/results/benchmark.md): some four hours on two cores for Figure 2, and two thirds as many
# runs again for the rest.
PAPER_SMALL = --root=runs/paper --seeds=0,1,2 --num_steps=100000 --envs=HalfCheetah-v5,Walker2d-v5,Swimmer-v5 --processes=2
paper-small: .venv/installed
	$(BIN)/python -m experiments.benchmark $(PAPER_SMALL) --only='*/preqn-sin,*/td3-relu,*/sac-relu'
	$(BIN)/python -m experiments.alignment $(PAPER_SMALL)

# The study behind the default solver (docs/results/solver.md): eight runs, some 20 minutes on two
# cores.
solver-study: .venv/installed
	for env in HalfCheetah-v5 Walker2d-v5; do \
	  for damping in 1e-4 1e-3 1e-2; do \
	    $(BIN)/python -m experiments.train --env=$$env --damping=$$damping --num_steps=30000 --logdir=runs/solver-study/$$env-cholesky-$$damping || exit 1; \
	  done; \
	  $(BIN)/python -m experiments.train --env=$$env --solver=eigh --num_steps=30000 --logdir=runs/solver-study/$$env-eigh || exit 1; \
	done
	$(BIN)/python -m experiments.plot runs/solver-study/* --out=runs/solver-study.png

# What makes Q overshoot on Walker2d-v5, and what does not (docs/results/overshooting.md).
OVERSHOOT = $(BIN)/python -m experiments.train --env=Walker2d-v5 --seeds=0,1 --num_steps=15000 --log_every=500 --eval_every=2500
overshoot-study: .venv/installed
	$(OVERSHOOT) --logdir=runs/overshoot/paper
	$(OVERSHOOT) --initializer=pytorch --logdir=runs/overshoot/pytorch
	$(OVERSHOOT) --critic_learning_rate=0.03 --logdir=runs/overshoot/rate
	$(OVERSHOOT) --target_networks --logdir=runs/overshoot/targets
	$(OVERSHOOT) --num_critics=2 --target_noise=0.2 --logdir=runs/overshoot/two-smoothed

# A Python that is asked for is the one that runs.
ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) --version),$(shell $(BIN)/python --version))
$(error .venv is $(shell $(BIN)/python --version) and PYTHON=$(PYTHON) is another; type rm -rf .venv first)
endif
endif
endif

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one, as in: make demo PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || \
	  $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[experiments]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
