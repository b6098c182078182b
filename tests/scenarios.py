"""Scenarios: tests that mostly wait. So five of them are played at a time, each in a thread.

A file collects its scenarios, and one test looks at what became of each:

    scenario = Scenarios()

    @scenario
    def a_job_is_done(start, start_redis): ...

    @pytest.mark.parametrize("scenario", scenario.collected)
    def test_that(scenario, outcomes):
        outcomes[scenario].result()

Those of all files are played together, in their order, after all ordinary tests: these have
the machine for themselves. What a scenario prints is captured with the test that pytest is
at just then: `pytest -s` shows it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import interrupted, starting_redis, starting_scripts


class Scenarios:
    """The scenarios of a file. As a decorator, it adds a function to them.

    A scenario is called with `start` and `start_redis`, which are as the fixtures are.
    """

    def __init__(self):
        self.collected = []

    def __call__(self, function: Callable, **arguments) -> Callable:
        words = [function.__name__]
        for name, value in arguments.items():
            words.append(f"{name}={getattr(value, 'name', value)}")
        call = Scenario(function, **arguments)
        self.collected.append(pytest.param(call, id="-".join(words)))
        return function

    def given(self, **arguments) -> Callable:
        """Decorate a function that is a scenario with these arguments, or with others."""
        return partial(self, **arguments)


class Scenario(partial):
    """A function with its arguments."""

    def play(self, folder: Path) -> None:
        """Play it with a folder for its Redis servers, and end what it has started."""
        with starting_scripts() as start, starting_redis(folder) as start_redis:
            self(start, start_redis)


def pause(seconds: float) -> None:
    """Sleep in a scenario, which gives up when the tests are interrupted."""
    if interrupted.wait(seconds):
        pytest.fail("interrupted")
