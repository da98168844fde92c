"""Which releases base images are made of."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from podyd.admin import base_image
from podyd.cli.main import parser
from podyd.engine.command import ImageCommand
from podyd.engine.dialect import LXD


@pytest.mark.parametrize("release", base_image.RELEASES, ids=str)
def test_each_release_is_offered(
    capsys: pytest.CaptureFixture[str], release: base_image.Release
) -> None:
    assert base_image.release(release.suite) is release
    assert {"systemd", "openssh-server", "python3"} <= set(release.packages)
    with pytest.raises(SystemExit):
        parser().parse_args(["image", "build", "--help"])
    assert release.suite in capsys.readouterr().out


def test_without_a_list_of_suites_nothing_is_asked_of_debian_for_ubuntu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def bootstrap(*arguments: object) -> NoReturn:
        raise AssertionError(f"begins: {arguments}")

    monkeypatch.setattr(base_image, "_check", lambda *arguments: None)
    monkeypatch.setattr(base_image, "_bootstrap", bootstrap)
    monkeypatch.setattr(base_image, "SUITES", tmp_path / "none")
    images = ImageCommand(LXD, LXD.places[0], "podyd")
    ubuntu = base_image.release("jammy")
    with pytest.raises(base_image.BuildError, match="apt-get install distro-info-data"):
        base_image.build("x", ubuntu, images=images)
    with pytest.raises(AssertionError, match="begins"):
        base_image.build("x", ubuntu, images=images, mirror="http://mirror.example/ubuntu")
    with pytest.raises(AssertionError, match="begins"):
        base_image.build("x", images=images)


def test_an_unknown_one_is_a_new_debian() -> None:
    assert str(base_image.release("forky")) == "Debian forky"
    assert base_image.release("forky").alias == "forky"
