"""What podyd.yaml may say, and what podyd answers to the rest."""

from __future__ import annotations

import pytest

from podyd.base.errors import ConfigError
from podyd.config.loader import parse
from podyd.config.schema import WebConfig


@pytest.mark.parametrize("size", ["-1", "0", "999", "16385KiB", "true", "much"])
def test_what_is_kept_of_output_has_a_limit(size: str) -> None:
    with pytest.raises(ConfigError, match=r"exec_output_max.* from 1kB to 16MiB"):
        parse(f"pods: {{exec_output_max: {size}}}", source="podyd.yaml")
    assert parse("pods: {exec_output_max: 16MiB}", source="").pods.exec_output_max == 2**24


@pytest.mark.parametrize("lease", ["grace: -1", "grace: 3601", "grace: soon", "end: stop"])
def test_how_a_lease_ends_is_one_of_two_ways_within_an_hour(lease: str) -> None:
    with pytest.raises(ConfigError, match=r"lease.*(from 0 to 3600|one of end, leave)"):
        parse(f"lease: {{{lease}}}", source="podyd.yaml")
    assert parse("lease: {grace: 0, end: leave}", source="").lease.grace == 0


@pytest.mark.parametrize("key", ["memory_limit", "cpu_limit"])
@pytest.mark.parametrize("part", ["default: {%s: 0}", "users: {alice: {%s: 0}}"])
def test_no_pod_runs_on_nothing(key: str, part: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* more than 0, or -1 for no limit"):
        parse(f"quota: {{{part % key}}}", source="podyd.yaml")
    assert parse(f"quota: {{default: {{{key}: -1}}}}", source="")


def test_the_page_can_be_turned_off() -> None:
    assert parse("web: false").web is None
    assert parse("web: true").web == parse("").web == WebConfig()
    web = parse("web: {status_allow: [10.0.0.0/8], idle_hours: 0.5}").web
    assert web is not None
    assert (str(web.status_allow[0]), web.idle_hours) == ("10.0.0.0/8", 0.5)


@pytest.mark.parametrize("hours", ["0", "721", "true", "long"])
def test_a_login_on_the_page_is_not_kept_for_ever(hours: str) -> None:
    with pytest.raises(ConfigError, match=r"web.idle_hours.* above 0, up to 720"):
        parse(f"web: {{idle_hours: {hours}}}", source="podyd.yaml")


def test_a_section_that_is_needed_cannot_be_turned_off() -> None:
    with pytest.raises(ConfigError, match="'lease' must be a mapping"):
        parse("lease: false")
    with pytest.raises(ConfigError, match="'tls' must also have cert and key"):
        parse("tls: true")
