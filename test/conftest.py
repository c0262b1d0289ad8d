"""Tests run in the environment of `vla`: ROS, the DDS profile, discovery on this machine only."""

import os
import sys

import pytest

from vla_ros.cli.environment import environment

_STATUS = pytest.StashKey[int]()
_wanted = environment(os.environ)
if any(_wanted.get(name) != os.environ.get(name) for name in ("LD_LIBRARY_PATH", "PYTHONPATH")):  # read when a process starts
    pytest.exit(
        "ROS is not sourced in this shell: use `make test`, or `.venv/bin/python -m vla_ros.cli.environment .venv/bin/python -m pytest`", 4
    )
os.environ.update(_wanted)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vla_ros")
    group.addoption("--hardware", metavar="RIG", help="run test/contract/test_robots.py on the real robot of config/rigs/RIG.yaml")
    group.addoption("--arm", metavar="NAME", help="with --hardware: which arm of the rig, the first one by default")
    group.addoption("--yes", action="store_true", help="with --hardware: do not ask before the robot moves")
    group.addoption("--faults-table", metavar="FILE", help="write what test/contract/test_faults.py measures into this page")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Sets `failed` of each try of a test, for the fixtures that clear up after it."""
    report = yield
    item.failed = report.failed or (call.when != "setup" and item.failed)
    return report


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leaves without Python's own tear-down: after a whole run (not after any file alone) a native library among the drivers', torch's and
    ROS's crashes in it, which would turn passed tests into a failed run. Everything has been reported by now.
    """
    if _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])
