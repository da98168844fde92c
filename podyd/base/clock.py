"""The time, and how it is written."""

from __future__ import annotations

from datetime import datetime, timezone

# A century: times beyond the year 9999 cannot be written.
MAX_HOURS = 876_600.0


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


def iso(moment: datetime) -> str:
    """A time as the API writes it: ISO 8601, in UTC, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_of(seconds: float) -> str:
    """A time in seconds since 1970, as `iso` writes it."""
    return iso(datetime.fromtimestamp(seconds, timezone.utc))
