"""Where in the user's script something was asked for."""

from __future__ import annotations

import inspect

from mpirt.graph.user_code import caller, caller_line, line_of


def test_the_line_of_a_caller_is_the_one_that_python_was_at() -> None:
    def here() -> tuple[str, str]:
        frame = inspect.currentframe()
        assert frame is not None and frame.f_back is not None
        return line_of(caller(0)), f"{frame.f_code.co_filename}:{frame.f_lineno}"

    for _ in range(2):
        told, true = here()
        assert told == true
    # A call over several lines is at the line of its name; a place outlives what is done after it.
    places = [
        (caller(0), inspect.stack()[0].lineno),
        (
            caller(
                0,
            ),
            inspect.stack()[0].lineno - 3,
        ),
    ]
    lines = [line_of(place).rpartition(":") for place, _ in places]
    assert [(file, int(line)) for file, _, line in lines] == [(__file__, line) for _, line in places]
    assert caller_line().rpartition(":")[0] == __file__
