"""Whose address counts behind a proxy, and that nobody can lend themselves another."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest

from podyd.api.address import client_address
from podyd.config.values import parse_networks

PROXIES = parse_networks(["127.0.0.1", "::1", "10.0.0.0/24"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        # A peer that is no proxy is believed nothing.
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("192.0.2.1", ["127.0.0.1"], "192.0.2.1"),
        ("fe80::1", ["198.51.100.7"], "fe80::1"),
        # A proxy is believed what it has added itself.
        ("127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["127.0.0.1, 203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["nonsense, 198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["198.51.100.7, 10.0.0.3"], "198.51.100.7"),
        ("127.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        # What cannot be understood is not guessed at.
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7, nonsense"], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7:443"], "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%any user=root"], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7,"], "127.0.0.1"),
        ("127.0.0.1", ["10.0.0.3"], "127.0.0.1"),
    ],
)
def test_the_address_that_counts(peer: str, forwarded: list[str], address: str) -> None:
    headers = HTTPHeaders()
    for value in forwarded:
        headers.add("X-Forwarded-For", value)
    request = HTTPServerRequest(method="GET", uri="/version", headers=headers)
    request.remote_ip = peer
    assert client_address(request, PROXIES) == address
    assert client_address(request, ()) == peer
