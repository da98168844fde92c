"""What admins see of all members, and do about their leases."""

from __future__ import annotations

import json

import pytest

from tests.integration.harness import SMALL, Client, Node, wait_until


def test_members_see_nothing_of_it(alice: Client) -> None:
    for path in ("/admin/people", "/admin/log", "/admin/doctor"):
        alice.get(path).refused(403, "not_an_admin")
    alice.post("/admin/release", pod="x", reason="y").refused(403, "not_an_admin")


def test_people_with_what_they_use(admin: Client, own: Client) -> None:
    people = {person["user"]: person for person in admin.get("/admin/people").ok}
    assert people[admin.user]["is_admin"] == 1
    person = people[own.user]
    assert (person["used"]["pods"], person["used"]["images"], person["is_admin"]) == (1, 0, 0)
    assert person["quota"] == own.get("/user/info").ok["quota"]


def test_the_log_has_what_was_changed_and_what_was_refused(admin: Client, own: Client) -> None:
    own.post("/pod/stop", ins="main").ok
    own.post("/pod/start", ins="none").refused(404)
    own.get("/pod/info", ins="main").ok
    entries = admin.get("/admin/log", user=own.user).ok
    name = own.get("/pod/info", ins="main").ok["name"]
    shown = [(item["operation"], item["pod"], item["status"], item["code"]) for item in entries]
    assert shown == [
        ("/pod/start", f"{own.user}-none", 404, "no_such_pod"),
        ("/pod/stop", name, 200, ""),
        ("/pod/create", name, 200, ""),
    ]
    assert admin.get("/admin/log", pod=name, limit=1).ok == entries[1:2]


@pytest.mark.usefixtures("lab_cards")
def test_an_admin_ends_a_lease_with_a_reason(admin: Client, member: Client) -> None:
    name = member.post("/pod/create", ins="main", image=SMALL).ok["name"]
    member.post("/gpu/lease", ins="main", gpus="1", hours=1).ok
    done = admin.post("/admin/release", pod=name, reason="The <b>paper</b> is due.").ok
    assert f"{admin.user} has ended the lease of GPU" in done["log"]
    assert done["leases"] == []
    texts: list[str] = []

    def has_come() -> bool:
        texts[:] = [item["text"] for item in member.get("/user/notices").ok]
        return any("The <b>paper</b> is due." in text for text in texts)

    wait_until(has_come, "the notice with the reason")
    assert sum("The <b>paper</b>" in text for text in texts) == 1
    again = admin.post("/admin/release", pod=name, reason="again").ok
    assert "no such lease" in again["log"]
    admin.post("/admin/release", pod="no-such", reason="x").refused(404, "no_such_pod")


def test_what_doctor_has_kept(node: Node, admin: Client) -> None:
    path = node.directory / "auth" / "findings.json"
    assert "--keep" in admin.get("/admin/doctor").ok["problem"]
    row = {"check": "x", "level": "note", "what": "Something.", "do": ""}
    path.write_text(json.dumps({"time": "2026-11-28T00:00:00Z", "findings": [row]}))
    try:
        answer = admin.get("/admin/doctor").ok
        assert (answer["findings"], answer["problem"]) == ([row], None)
    finally:
        path.unlink()
