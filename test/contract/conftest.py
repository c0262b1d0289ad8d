"""Which drivers the tests of this folder run over, and the table of faults."""

from __future__ import annotations

import pytest
from counterparts import COUNTERPARTS, DRIVERS
from faults_table import Row, write_table

_ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "robot_under_test" in metafunc.fixturenames:
        hardware = metafunc.config.getoption("--hardware")
        metafunc.parametrize("robot_under_test", [f"hardware {hardware}"] if hardware else DRIVERS, indirect=True, scope="module")


@pytest.fixture
def note(request: pytest.FixtureRequest):
    """Takes one row of the table of faults."""

    def take(row: Row) -> None:
        print(row)
        request.config.stash[_ROWS].append(row)

    return take


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--faults-table")
    if path:  # only what has passed is a row
        write_table(path, session.config.stash[_ROWS], list(COUNTERPARTS))
