"""nginx in front of podyd with what README.Debian says, and what has to work through it."""

from __future__ import annotations

import contextlib
import json
import re
import textwrap

import websocket

from tests.integration.harness import Client

# What README.Debian has below a prefix in place of lines that it has shown before.
OTHER_LINES = "# and all the other lines of 'location /' above"
PREFIX = "/pods/"
# Of a script on the page.
SCRIPT = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}


def configuration(readme: str, *, alone: int, below: int) -> str:
    """nginx's, from the text of README.Debian: podyd has a port alone, and is below PREFIX of
    another one."""
    whole, prefixed = _block(readme, "location / {"), _block(readme, f"location {PREFIX} {{")
    others = [line for line in whole.splitlines()[1:-1] if "proxy_pass " not in line]
    assert OTHER_LINES in prefixed
    servers = {alone: whole, below: prefixed.replace(OTHER_LINES, "\n".join(others))}
    return _block(readme, "map $http_upgrade") + "".join(
        f"\nserver {{\n    listen 127.0.0.1:{port};\n{location}\n}}\n"
        for port, location in servers.items()
    )


def _block(text: str, start: str) -> str:
    """What begins so, up to the bracket that closes it."""
    found = re.search(rf"^( *){re.escape(start)}.*?^\1\}}$", text, re.M | re.S)
    assert found is not None, start
    return textwrap.dedent(found[0])


def works(client: Client, prefix: str) -> None:
    """Fail unless podyd's page, its calls, its login and what is live are there for this member, at
    the client's port below the prefix."""
    assert "text/html" in _page(client, prefix)
    assert client.get(f"{prefix}user/info").ok["user"]["name"] == client.user
    answer = client.call("POST", f"{prefix}user/login", headers=SCRIPT)
    cookie = str(answer.headers["Set-Cookie"]).partition(";")[0]
    connection = client.connection(30)
    with contextlib.closing(connection):
        if connection.sock is None:
            connection.connect()
        live = websocket.create_connection(
            f"ws://127.0.0.1:{client.port}{prefix}events",
            socket=connection.sock,
            origin=f"http://127.0.0.1:{client.port}",
            cookie=cookie,
            subprotocols=["podyd", f"podyd-key.{answer.ok['key']}"],
        )
        assert json.loads(live.recv())["whole"] is True


def login_by_curl(host: str, port: int, user: str, password: str) -> str:
    """A command that logs in on the page by TLS and writes the head of the answer."""
    headers = " ".join(f"-H '{name}: {value}'" for name, value in SCRIPT.items())
    return (
        f"curl -sSk --http1.1 -o /dev/null -D - -X POST {headers}"
        f" --resolve {host}:{port}:127.0.0.1 -u {user}:{password} https://{host}:{port}/user/login"
    )


def _page(client: Client, path: str) -> str:
    """The type of what a browser gets there."""
    connection = client.connection(30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Accept": "text/html"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return str(response.headers["Content-Type"])
