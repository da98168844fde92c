"""The host's accounts of people, as NSS has them; only `podyd auth` asks it."""

from __future__ import annotations

import grp
import os
import pwd
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from podyd.auth.protocol import AccountEntry

NOBODY_UID = 65534


def find(user: str, min_uid: int) -> pwd.struct_passwd | None:
    """The account, if it is a person's; PAM is never asked about root or a system account."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: NUL, or half a surrogate pair
        return None
    return entry if _is_person(entry, min_uid) else None


def _is_person(entry: pwd.struct_passwd, min_uid: int) -> bool:
    return entry.pw_uid >= min_uid and entry.pw_uid not in (0, NOBODY_UID)


def has_login_shell(entry: pwd.struct_passwd) -> bool:
    """Whether its shell lets anybody in."""
    return Path(entry.pw_shell).name not in ("nologin", "false")


def account_of(entry: pwd.struct_passwd) -> AccountEntry:
    """The account with its groups, each of which NSS is asked for."""
    names = []
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        with suppress(KeyError):  # a gid without a name is no group to configure
            names.append(grp.getgrgid(gid).gr_name)
    return _as_account(entry, names)


def all_accounts(min_uid: int) -> tuple[AccountEntry, ...]:
    """All that NSS enumerates, by name; the groups are read once, not once per account."""
    primary: dict[int, str] = {}
    memberships: dict[str, list[str]] = defaultdict(list)
    for group in grp.getgrall():
        primary.setdefault(group.gr_gid, group.gr_name)
        for member in group.gr_mem:
            memberships[member].append(group.gr_name)
    people = {
        entry.pw_name: entry
        for entry in pwd.getpwall()
        if _is_person(entry, min_uid) and has_login_shell(entry)
    }
    accounts = []
    for name, entry in sorted(people.items()):
        primary_group = [primary[entry.pw_gid]] if entry.pw_gid in primary else []
        accounts.append(_as_account(entry, primary_group + memberships[name]))
    return tuple(accounts)


def _as_account(entry: pwd.struct_passwd, groups: list[str]) -> AccountEntry:
    return AccountEntry(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(sorted(set(groups))),
        home=entry.pw_dir,
        shell=entry.pw_shell,
    )
