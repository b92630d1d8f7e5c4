VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint
demo: $(VENV)/installed
	$(BIN)/imago train demo
	$(BIN)/imago sample runs/demo --grid --seeds 0-31
	@echo
	@echo 'Pictures while learning:  runs/demo/grids  (reals.png beside the fakes)'
	@echo 'Pictures sampled now:     runs/demo/samples'
	@echo 'One class:                $(BIN)/imago sample runs/demo --class flags --grid'
	@echo 'Curves and pictures:      $(BIN)/tensorboard --logdir runs'
	@echo 'Go on learning:           $(BIN)/imago train demo stop_after=1h'
	@echo 'Your own folder:          $(BIN)/imago pack MY_PICTURES my-shards --resolution 64    (it prints how to train on them)'

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

lint: $(VENV)/installed
	$(BIN)/ruff check --config .ci/ruff.toml .
	$(BIN)/mypy --config-file .ci/mypy.ini -p imago

# constraints.txt keeps pip from fetching CUDA builds for machines without a GPU
$(VENV)/installed: setup.py .ci/constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[test]'
	touch $@
