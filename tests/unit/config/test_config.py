"""What podyd.yaml may say, and what podyd answers to the rest."""

from __future__ import annotations

import pytest

from podyd.base.errors import ConfigError
from podyd.config.loader import parse


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
