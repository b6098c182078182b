"""Scenarios: tests that mostly wait. So four of them are played at a time, each in a thread.

A file collects its scenarios, and one test looks at what became of each:

    scenario = Scenarios()
    outcomes = scenarios.outcomes  # pytest looks for fixtures in the file

    @scenario
    def a_job_is_done(start, start_redis): ...

    @pytest.mark.parametrize("function", scenario.collected)
    def test_that(function, outcomes):
        outcomes[function].result()

They are begun in the order of the file: the longest come first. Ordinary tests stand before
`test_that`, and so have the machine for themselves. What a scenario prints is captured with
the test that pytest is at just then: `pytest -s` shows it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from conftest import interrupted, starting_redis, starting_scripts

AT_A_TIME = 4


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
        call = partial(function, **arguments)
        self.collected.append(pytest.param(call, id="-".join(words)))
        return function

    def given(self, **arguments) -> Callable:
        """Decorate a function that is a scenario with these arguments, or with others."""
        return partial(self, **arguments)


def pause(seconds: float) -> None:
    """Sleep in a scenario, which gives up when the tests are interrupted."""
    if interrupted.wait(seconds):
        pytest.fail("interrupted")


def play(scenario: Callable, folder: Path) -> None:
    """Play a scenario, and end what it has started."""
    with starting_scripts() as start, starting_redis(folder) as start_redis:
        scenario(start, start_redis)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> Iterator[dict[Callable, Future]]:
    """What becomes of those scenarios of a file that are chosen, by `-k` for example."""
    items = [item for item in request.session.items if item.path == request.path]
    tests = [item for item in items if "outcomes" in item.fixturenames]
    pool = ThreadPoolExecutor(AT_A_TIME)
    yield {
        function: pool.submit(play, function, tmp_path_factory.mktemp("redis"))
        for function in [test.callspec.params["function"] for test in tests]
    }
    interrupted.set()  # after Ctrl-C, or the first failure with -x
    pool.shutdown(cancel_futures=True)
    interrupted.clear()
