# make setup   everything that `vla` needs, into .venv (again: only what has changed)
# make demo    one instruction, one simulated Franka, end to end
# make test    all tests          make bench   measurements against openpi        make lint    ruff
# make faults  the fault tests alone, and docs/faults.md from what they measure
# make clean   forgets .venv and every build
.PHONY: setup demo test faults bench lint clean
PY := .venv/bin/python
WITH_ROS := $(PY) -m vla_ros.cli.environment

setup:
	@command -v python3 >/dev/null || { echo "setup: python3 is missing: sudo apt install python3.11 python3.11-venv python3.11-dev" >&2; exit 1; }
	@python3 tools/setup_env.py

demo: setup
	@.venv/bin/vla demo $(ARGS)

test: setup
	@$(WITH_ROS) $(PY) -m pytest $(or $(ARGS),test)

faults: setup
	@$(WITH_ROS) $(PY) -m pytest test/contract/test_faults.py --faults-table docs/faults.md --deselect test/contract/test_faults.py::test_the_page_lists_these_cases

bench: setup
	@$(WITH_ROS) $(PY) benchmarks/run.py $(ARGS)

lint: setup
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

clean:
	rm -rf .venv build install log .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
