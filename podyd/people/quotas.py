"""What podyd.yaml grants a user: the default, then their groups, then their own entry."""

from __future__ import annotations

import dataclasses

from podyd.auth.client import Account
from podyd.base.quantities import UNLIMITED
from podyd.config.schema import Config, Quota, QuotaPart


def quota_of(account: Account, config: Config) -> Quota:
    """The limits of a user; of several groups that set one, the most generous counts."""
    quotas = config.quota
    groups = [quotas.groups[name] for name in sorted(account.groups) if name in quotas.groups]
    of_user = quotas.users.get(account.name, QuotaPart())
    limits = {}
    for item in dataclasses.fields(Quota):
        of_groups = [value for part in groups if (value := getattr(part, item.name)) is not None]
        value = getattr(of_user, item.name)
        if value is None and of_groups:
            value = UNLIMITED if UNLIMITED in of_groups else max(of_groups)
        limits[item.name] = getattr(quotas.default, item.name) if value is None else value
    return Quota(**limits)


def profiles_of(account: Account, config: Config) -> tuple[str, ...]:
    """The profiles of a user's pods; of several groups, the first in the file counts."""
    pods = config.pods
    if account.name in pods.user_profiles:
        return pods.user_profiles[account.name]
    for group, profiles in pods.group_profiles.items():
        if group in account.groups:
            return profiles
    return pods.profiles
