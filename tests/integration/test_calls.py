"""The HTTP contract of API.md: every route, every kind of error, the document that describes it."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import pytest

from tests.integration.harness import IMAGE, SMALL, Client, Node, Server
from tests.lab import lab

POD_INFO = {
    "name",
    "ins",
    "owner",
    "status",
    "image",
    "created",
    "started",
    "addresses",
    "port_mapping",
    "gpu_ids",
    "memory_limit",
    "cpu_limit",
    "disk_used",
    "disk_limit",
    "profiles",
    "uptime",
}


@pytest.fixture(scope="session")
def document(alice: Client) -> Mapping[str, Any]:
    """What podyd itself serves as its description."""
    served: Mapping[str, Any] = alice.get("/openapi.json").ok
    return served


def test_every_answer_is_as_the_document_says(
    node: Node,
    document: Mapping[str, Any],
    alice: Client,
    admin: Client,
    pod: str,
    ins: str,
) -> None:
    # Without a card there is nothing to lease.
    lease = [{"ins": ins, "gpus": "1", "hours": "1"}] if node.lab_state.gpus else []
    params: dict[str, list[dict[str, str]]] = {
        "/help": [{}, {"path": "/pod/"}, {"path": "pod/exec"}],
        "/pod/create": [{"ins": ins, "image": IMAGE}, {"ins": f"{ins}-small", "image": SMALL}],
        "/pod/exec": [{"ins": ins, "cmd": "echo x"}],
        "/image/inspect": [{"image": IMAGE}],
        "/user/ch-passwd": [],
        "/user/token": [{"name": "x"}],
        "/user/token-revoke": [{"id": "all"}],
        "/user/notices": [{}, {"since": "2d", "limit": "1"}],
        "/user/notices-read": [{"id": "1"}],
        "/admin/release": [{"pod": admin.get("/pod/listall").ok[0]["name"], "reason": "x"}],
        "/admin/log": [{}, {"since": "2d", "user": alice.user, "limit": "1"}],
        # Of a login on the page: test_web.py.
        "/user/logout": [],
        # WebSockets: test_events.py, test_shell.py.
        "/events": [],
        "/pod/exec-stream": [],
        "/pod/shell": [],
        "/pod/file": [
            {"ins": ins, "path": "/etc", "format": "stat"},
            {"ins": ins, "path": "/etc"},
        ],
        # Its body is a file: test_files.py.
        "/pod/file-put": [],
        "/pod/file-delete": [{"ins": ins, "path": "/etc/motd"}],
        "/pod/gpus": [{"ins": ins, "gpus": "all"}],
        "/pod/limits": [{"ins": ins, "memory": "1GiB"}],
        "/gpu/lease": lease,
        "/gpu/queue": lease,
        "/pod/snapshot": [{"ins": ins, "name": "s"}],
        "/pod/restore": [{"ins": ins, "name": "s"}],
        "/pod/snapshot-delete": [{"ins": ins, "name": "s"}],
        "/pod/copy": [{"ins": f"{ins}-small", "to": f"{ins}-copy", "gpus": "none"}],
        "/pod/port": [{"ins": ins, "port": "8888"}],
        "/pod/port-delete": [{"ins": ins, "port": "8888"}],
        "/pod/commit": [{"ins": f"{ins}-small", "tag": "t"}],
        # Of one that goes on: test_images.py.
        "/pod/commit-cancel": [],
        "/image/delete": [{"image": f"{admin.user}-t"}],
        "/pod/delete": [{"ins": name} for name in (ins, f"{ins}-small", f"{ins}-copy")],
    }
    one_pod = [{"ins": ins}]
    first = ["/pod/create", "/pod/snapshot"]
    last = ["/pod/snapshot-delete", "/image/delete", "/pod/delete"]
    order = [*first, *sorted(set(document["paths"]) - {*first, *last}), *last]
    seen = set()
    for path in order:
        for method, operation in document["paths"][path].items():
            names = {item["name"] for item in operation["parameters"]}
            default = one_pod if "ins" in names else [{}]
            for given in params.get(path, default):
                content = operation["responses"]["200"]["content"]
                if "application/json" not in content:
                    continue  # /metrics: test_metrics.py; /status.txt: test_history.py
                answer = admin.call(method.upper(), path, given).ok
                schema = content["application/json"]["schema"]
                whole = {**schema, "components": document["components"]}
                jsonschema.Draft202012Validator(whole).validate(answer)
                seen.add(path)
    left_out = {"/metrics", "/status.txt"} | {path for path in params if not params[path]}
    assert seen == set(document["paths"]) - left_out


def test_user_info(alice: Client, admin: Client) -> None:
    assert alice.get("/user/info").ok == {
        "user": {"name": alice.user, "is_admin": 0},
        "quota": {
            "max_pods": 5,
            "gpu_count": -1,
            "memory_limit": -1,
            "cpu_limit": -1,
            "disk_limit": -1,
            "disk_total": -1,
            "max_snapshots": 10,
            "max_ports": 10,
            "max_images": 5,
            "image_size": -1,
        },
    }
    assert admin.get("/user/info").ok["user"] == {"name": admin.user, "is_admin": 1}


def test_user_list_has_people_only(alice: Client, admin: Client) -> None:
    listed = alice.get("/user/list").ok
    assert {"name": alice.user, "is_admin": 0} in listed
    assert {"name": admin.user, "is_admin": 1} in listed
    names = [user["name"] for user in listed]
    assert names == sorted(names)
    assert not {"root", "daemon", "nobody"} & set(names)


def test_pod_info(alice: Client, pod: str, node: Node) -> None:
    info = alice.get("/pod/info", ins=pod).ok
    assert set(info) == POD_INFO
    assert info == alice.get("/pod/inspect", ins=pod).ok | {"uptime": info["uptime"]}
    assert (info["ins"], info["owner"], info["status"]) == (pod, alice.user, "running")
    assert info["name"] == f"{alice.user}-{pod}" == node.instance_of(alice.user, pod)["name"]
    assert info["image"] == IMAGE
    (mapping,) = info["port_mapping"]
    assert mapping.endswith(":22")
    assert (info["memory_limit"], info["cpu_limit"]) == (-1, -1)
    shown = alice.exec(pod, "ip -4 -o addr show dev eth0 | sed 's,.*inet ,,; s,/.*,,'")["stdout"]
    assert info["addresses"][:1] == shown.split()
    assert 0 < info["uptime"] < 3600


def test_open_to_everybody_is_the_version_alone(server: Server) -> None:
    anonymous = server.client()
    assert anonymous.get("/version").ok == [0, 1, 0]
    for path in ("/help", "/openapi.json", "/user/info", "/host/spec", "/pod/list", "/host/gpu-ps"):
        answer = anonymous.get(path)
        answer.refused(401)
        assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_help_shows_every_route_with_one_method(alice: Client) -> None:
    routes = {item["path"]: item for item in alice.get("/help").ok}
    assert all(len(item["methods"]) == 1 for item in routes.values())
    assert routes["/user/ch-passwd"]["methods"] == ["POST"]
    exec_params = [(item["name"], item["optional"]) for item in routes["/pod/exec"]["params"]]
    assert exec_params == [("ins", False), ("cmd", False), ("timeout", True)]


@pytest.mark.parametrize("path", ["/pod/exec", "pod/exec"])
def test_help_of_one_route(alice: Client, path: str) -> None:
    assert [item["path"] for item in alice.get("/help", path=path).ok] == ["/pod/exec"]


def test_help_of_a_prefix(alice: Client) -> None:
    listed = [item["path"] for item in alice.get("/help", path="host/").ok]
    assert sorted(listed) == ["/host/gpu-ps", "/host/gpus", "/host/images", "/host/spec"]


def test_help_of_a_route_that_is_not_there_names_the_nearest(alice: Client) -> None:
    body = alice.get("/help", path="pod/exek").refused(404, "no_such_route")
    assert "/pod/exec" in body["advice"]


def test_images(alice: Client) -> None:
    assert IMAGE in alice.get("/host/images").ok
    assert alice.get("/image/list").ok == alice.get("/host/images").ok
    image = alice.get("/image/inspect", image=IMAGE).ok
    assert (image["name"], image["architecture"]) == (IMAGE, "x86_64")
    assert image["owner"] is None
    assert image["size"] > 1_000_000
    body = alice.get("/image/inspect", image="no-such").refused(404, "no_such_image")
    assert "/host/images" in body["advice"]


def test_without_a_driver_gpus_are_empty_and_null(node: Node, alice: Client) -> None:
    # A host without NVIDIA's library, whatever this one has.
    bare = node.serve(environment={"LD_LIBRARY_PATH": ""})
    client = bare.client(alice.user)
    assert client.get("/host/gpu-ps").ok == {}
    body = client.get("/host/gpu-ps", id="0").refused(400, "no_such_gpu")
    assert body["count"] == 0
    spec = client.get("/host/spec").ok
    assert (spec["nvidia_driver"], spec["cuda"]) == (None, None)
    assert spec["podyd"] == "0.1.0"
    assert spec["engine"] == lab.ENGINE.key
    assert spec["lxd"] == node.lxd.get("/1.0")["environment"]["server_version"]
    assert bare.stop() == 0


def test_listall_is_for_admins(alice: Client, admin: Client, pod: str) -> None:
    alice.get("/pod/listall").refused(403, "not_an_admin")
    listed = admin.get("/pod/listall").ok
    assert (alice.user, pod) in [(item["owner"], item["ins"]) for item in listed]


# --- Errors -------------------------------------------------------------------------------------


def test_no_such_route(alice: Client) -> None:
    assert "/pod/list" in alice.get("/pod/lst").refused(404, "no_such_route")["advice"]
    for path in ("/", "//", "/pod", "/pod/list/", "/../etc/passwd", "/%00", "/openapiXjson"):
        alice.get(path).refused(404, "no_such_route")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_method(alice: Client, method: str) -> None:
    answer = alice.call(method, "/pod/create")
    answer.refused(405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path", "params", "code", "named"),
    [
        ("GET", "/pod/info", {}, "missing_parameter", "ins"),
        ("GET", "/pod/info", {"ins": ""}, "malformed_parameter", "ins"),
        ("GET", "/pod/info", {"ins": "../x"}, "malformed_parameter", "ins"),
        ("GET", "/pod/info", {"ins": "x" * 64}, "malformed_parameter", "ins"),
        ("GET", "/pod/info", {"ins": "a", "x": "1"}, "unknown_parameter", "x"),
        ("GET", "/version", {"x": "1"}, "unknown_parameter", "x"),
        ("POST", "/pod/create", {"ins": "a"}, "missing_parameter", "image"),
        ("GET", "/host/gpu-ps", {"id": "x"}, "malformed_parameter", "id"),
        ("GET", "/host/gpu-ps", {"gpu-id": "0,,1"}, "malformed_parameter", "id"),
        ("GET", "/host/gpu-ps", {"id": "0", "gpu-id": "0"}, "repeated_parameter", "id"),
    ],
)
def test_a_bad_parameter_is_named(
    alice: Client, method: str, path: str, params: Mapping[str, str], code: str, named: str
) -> None:
    body = alice.call(method, path, params).refused(400, code)
    assert body["parameter"] == named
    assert repr(named) in body["detail"]


def test_a_repeated_parameter_is_refused(alice: Client) -> None:
    alice.get("/pod/info?ins=a&ins=a").refused(400, "repeated_parameter")


def test_bytes_that_are_not_utf8_are_refused(alice: Client) -> None:
    alice.get("/pod/info?ins=%ff").refused(400, "not_utf8")


# --- Bodies -------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, {"cmd": "echo grüß", "timeout": 5}),
        (JSON, {"cmd": "echo grüß", "timeout": "2.5"}),
        (FORM, b"cmd=echo+gr%C3%BC%C3%9F&timeout=5"),
    ],
)
def test_a_body_carries_parameters(
    alice: Client, pod: str, headers: Mapping[str, str], body: object
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = alice.call("POST", "/pod/exec", {"ins": pod}, body=data, headers=headers)
    assert answer.ok["stdout"] == "grüß\n"


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        (JSON, b'{"ins": "a"}', "repeated_parameter"),
        (FORM, b"ins=a", "repeated_parameter"),
        (JSON, b'{"cmd": "a", "cmd": "b"}', "repeated_parameter"),
        (JSON, b'{"cmd": ', "malformed_body"),
        (JSON, b'["cmd"]', "malformed_body"),
        (JSON, b'"cmd"', "malformed_body"),
        (JSON, b"null", "malformed_body"),
        (JSON, b'{"cmd": ["true"]}', "malformed_body"),
        (JSON, b'{"cmd": null}', "malformed_body"),
        (JSON, b'{"cmd": true}', "malformed_body"),
        (JSON, b'{"cmd": "a", "timeout": NaN}', "malformed_parameter"),
        (JSON, b"[" * 100_000, "malformed_body"),
        (JSON, b"\xff", "not_utf8"),
        (JSON, b'{"cmd": "\\ud800"}', "not_utf8"),
        (JSON, b'{"\\ud800": "x"}', "not_utf8"),
        ({"Content-Type": "text/plain"}, b"cmd=true", "bad_content_type"),
    ],
)
def test_a_bad_body_is_refused(
    alice: Client, pod: str, headers: Mapping[str, str], body: bytes, code: str
) -> None:
    alice.call("POST", "/pod/exec", {"ins": pod}, body=body, headers=headers).refused(400, code)


def test_a_body_that_is_too_large(alice: Client, pod: str) -> None:
    body = b"cmd=" + b"x" * 1024**2
    answer = alice.call("POST", "/pod/exec", {"ins": pod}, body=body, headers=FORM)
    assert answer.refused(413)["limit"] == 1024**2


def test_a_chunked_body_that_is_too_large(alice: Client, pod: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", alice.port, timeout=30)
    chunks = (b"x" * 65536 for _ in range(40))
    connection.request(
        "POST", f"/pod/exec?ins={pod}", chunks, alice.login_header() | FORM, encode_chunked=True
    )
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (413, "body_too_large")
    connection.close()


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"nocolon").decode(),
        "Basic " + base64.b64encode(b":x").decode(),
        "Basic " + base64.b64encode(b"a\0b:x").decode(),
        "Basic " + base64.b64encode(b"\xff:x").decode(),
        "Digest abc",
        "Basic " + base64.b64encode(b"a" * 5000 + b":x").decode(),
    ],
)
def test_a_bad_login_header_is_a_401(server: Server, header: str) -> None:
    answer = server.client().call("GET", "/user/info", headers={"Authorization": header})
    answer.refused(401, "unauthorized")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_another_sites_page_cannot_use_a_browsers_login(
    new_user: Callable[[], Client], headers: Mapping[str, str]
) -> None:
    client = new_user()
    for method in ("GET", "POST"):
        answer = client.call(method, "/user/ch-passwd", {"passwd": "Theirs-now-1"}, headers=headers)
        answer.refused(403, "cross_site")
    client.get("/user/info").ok


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_ones_own_page_and_the_address_bar_can(alice: Client, site: str) -> None:
    own = {"Sec-Fetch-Site": site, "Origin": f"http://127.0.0.1:{alice.port}"}
    alice.call("GET", "/user/info", headers=own).ok


def test_what_is_no_http_does_not_harm(server: Server, alice: Client) -> None:
    for data in (b"\0\1\2\r\n\r\n", b"GET /version\r\n\r\n", b"POST / HTTP/1.1\r\n" * 9000):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(5)
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # It is cut off, as it should be.
    assert alice.get("/user/info").status == 200
    assert "Traceback" not in server.log_text()


def test_no_secret_reaches_the_log(
    new_user: Callable[[], Client], server: Server, node: Node
) -> None:
    client = new_user()
    secrets = ["sEcret-cmd-1", "sEcret-new-2", "sEcret-wrong-3"]
    client.post("/pod/exec", ins="none", cmd=secrets[0]).refused(404)
    client.get("/user/ch-passwd", passwd=secrets[1]).ok
    server.client(client.user, secrets[2]).get("/user/info").refused(401)
    # A password that was typed where the name belongs.
    server.client(secrets[2], "x").get("/user/info").refused(401)
    server.client().get(f"/no/such?passwd={secrets[1]}").refused(404)
    log = server.log_text() + (node.directory / "auth.log").read_text()
    assert f"POST /pod/exec user={client.user}" in log
    assert [secret for secret in [*secrets, client.password] if secret in log] == []
