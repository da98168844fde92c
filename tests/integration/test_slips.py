"""That LXD says in its log why an operation has failed, which tests/slips.py goes by."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests import slips
from tests.integration.harness import Node
from tests.lab import lab


def test_lxd_names_what_an_operation_failed_of(node: Node) -> None:
    over = threading.Event()
    log = slips.lxd_log(Path(node.lab_state.socket), over)
    try:
        # It says that somebody listens.
        next(log)
        body = {"source": {"type": "url", "url": "http://127.0.0.1:1/"}}
        with pytest.raises(lab.LabError, match="connection refused"):
            node.lxd.change("POST", f"/1.0/images?project={node.project}", body)
        message = next(
            message
            for message in log
            if message.owner == node.project and "Failure for operation" in message.text
        )
    finally:
        log.close()
    assert "connection refused" in message.text
