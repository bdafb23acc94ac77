# make train, make test, make lint: each sets up .venv first, if something changed since.
PYTHON ?= python3
bin := .venv/bin

.PHONY: train test test-slow lint bench clean

train: .venv/train.done
	$(bin)/python train.py

test: .venv/dev.done
	$(bin)/pytest -q -n auto -m "not slow"

test-slow: .venv/dev.done
	$(bin)/pytest -q -n auto -m slow

lint: .venv/dev.done
	$(bin)/ruff check .
	$(bin)/ruff format --check .

bench: .venv/dev.done
	$(bin)/python benchmarks/overhead.py

clean:
	rm -rf .venv

# The stamp is newer than what it was made from, or pip runs again.
.venv/train.done: pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/pip install --quiet -e . -c constraints.txt
	touch $@

.venv/dev.done: pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/pip install --quiet -e ".[dev]" -c constraints.txt
	touch $@ .venv/train.done
