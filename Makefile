# make quickstart | test | lint | setup
#   ARGS="..."           more Hydra overrides (quickstart) or pytest arguments (test)
#   VARIANT=cpu|cuda     which packages; by default CUDA when an NVIDIA GPU is visible, else CPU
#   PYTHON=/path/to/it   Python 3.11, 3.12 or 3.13; by default the first of them on PATH

PYTHON ?=
VARIANT ?= auto
ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint

help:
	@sed -n '/^# /s/^# //p; /^#  /s/^#//p' Makefile

setup:
	@sh scripts/setup.sh $(VARIANT)

quickstart: setup
	.venv/bin/python -m rlhf.iterate experiment=quickstart $(ARGS)

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests -n 2 --dist loadfile $(ARGS)

lint: setup
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
