"""Which releases base images are made of."""

from __future__ import annotations

import pytest

from podyd.admin import base_image
from podyd.cli.main import parser


@pytest.mark.parametrize("release", base_image.RELEASES, ids=str)
def test_each_release_is_offered(
    capsys: pytest.CaptureFixture[str], release: base_image.Release
) -> None:
    assert base_image.release(release.suite) is release
    assert {"systemd", "openssh-server", "python3"} <= set(release.packages)
    with pytest.raises(SystemExit):
        parser().parse_args(["image", "build", "--help"])
    assert release.suite in capsys.readouterr().out


def test_an_unknown_one_is_a_new_debian() -> None:
    assert str(base_image.release("forky")) == "Debian forky"
    assert base_image.release("forky").alias == "forky"
