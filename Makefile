# make train, make test, make lint: each sets up .venv first, if something changed since.
PYTHON ?= python3
bin := .venv/bin

.PHONY: train test test-slow lint bench clean

train: .venv/train.done
	$(bin)/python train.py

# A file's tests stay in one process, which sets up once what they share.
test: .venv/dev.done
	$(bin)/pytest -q -n auto --dist loadfile -m "not slow"

test-slow: .venv/dev.done
	$(bin)/pytest -q -n auto -m slow

lint: .venv/dev.done
	$(bin)/ruff check .
	$(bin)/ruff format --check .

# About an hour on a machine that does nothing else.
figures := overhead start inference guards growth sweeps processes memory peers
bench: .venv/dev.done .venv-peers/done
	(echo "# Figures" && echo; for each in $(figures); do \
	  $(bin)/python benchmarks/$$each.py && echo || exit 1; done; \
	  sed -n '/^## On other machines/,$$p' benchmarks/figures.md) >benchmarks/figures.new
	mv benchmarks/figures.new benchmarks/figures.md

clean:
	rm -rf .venv .venv-peers

# The stamp is newer than what it was made from, or pip runs again.
.venv/train.done: pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/pip install --quiet -e . -c constraints.txt
	touch $@

.venv/dev.done: pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/pip install --quiet -e ".[dev]" -c constraints.txt
	touch $@ .venv/train.done

# What we are measured beside has dependencies of its own.
.venv-peers/done: benchmarks/peers.txt constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -r benchmarks/peers.txt -c constraints.txt
	touch $@
