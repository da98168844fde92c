"""What an operation must say of itself."""

from __future__ import annotations

from typing import Any

import pytest

from podyd.contract.answers import Answer, Json, WebSocket
from podyd.contract.operation import GET, Access, Ends, Nothing, Operation, Proof

SOCKET = WebSocket(Nothing, Nothing, "")


@pytest.mark.parametrize("missing", ["access", "proof"])
def test_an_operation_that_does_not_say_who_may_call_it_is_none(missing: str) -> None:
    error: dict[str, Any] = {"access": Access.MEMBER, "proof": Proof.READS}
    del error[missing]
    with pytest.raises(TypeError, match=missing):
        Operation("/x", GET, Nothing, Json(str), "X.", **error)


@pytest.mark.parametrize(
    ("answer", "proof"), [(Json(str), Proof.INSIDE), (SOCKET, Proof.INSIDE), (SOCKET, Proof.READS)]
)
def test_what_reaches_into_a_pod_or_lasts_ends_with_its_caller(
    answer: Answer, proof: Proof
) -> None:
    error: dict[str, Any] = {"access": Access.MEMBER, "proof": proof}
    with pytest.raises(TypeError, match="/x reaches into a pod, or lasts"):
        Operation("/x", GET, Nothing, answer, "X.", **error)
    Operation("/x", GET, Nothing, answer, "X.", ends=Ends.WITH_CALLER, **error)
