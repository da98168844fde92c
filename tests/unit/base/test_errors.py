"""What an error tells, and where."""

from __future__ import annotations

import pytest

from podyd.base.errors import (
    Conflict,
    EngineRefused,
    NotRunning,
    PodydError,
    TooMany,
    engine_could_not,
)


@pytest.mark.parametrize(
    ("error", "body", "text"),
    [
        (Conflict("It is so."), {"detail": "It is so.", "code": "conflict"}, "It is so."),
        (
            Conflict("It is so.", advice="Change it.", code="c", gpu=1),
            {"detail": "It is so.", "advice": "Change it.", "code": "c", "gpu": 1},
            "It is so. Change it.",
        ),
        (
            NotRunning("Instance is frozen", status="frozen"),
            {
                "detail": "The pod is frozen.",
                "advice": "Start it with /pod/start.",
                "code": "pod_not_running",
                "status": "frozen",
            },
            "The pod is frozen. Start it with /pod/start.",
        ),
        (
            TooMany("Too much.", retry_after=1.5, advice="Wait."),
            {"detail": "Too much.", "advice": "Wait.", "code": "too_many_requests"}
            | {"retry_after": 2},
            "Too much. Wait.",
        ),
    ],
)
def test_an_error_says_what_is_the_matter_and_apart_from_that_what_to_do(
    error: PodydError, body: dict[str, object], text: str
) -> None:
    assert error.body() == body
    assert str(error) == text


def test_what_the_engine_could_not_do_has_not_the_advice_for_something_else() -> None:
    with pytest.raises(EngineRefused) as refused, engine_could_not("make the pod"):
        raise EngineRefused("it rains")
    assert refused.value.body() == {
        "detail": "LXD could not make the pod: it rains.",
        "code": "lxd_error",
    }
