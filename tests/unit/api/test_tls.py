"""Certificates that are renewed under a running server: real ones, in real handshakes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from podyd.api import tls
from podyd.api.tls import Certificate, load
from podyd.base.errors import ConfigError
from podyd.config.current import Settings
from podyd.config.schema import Config, TlsConfig
from tests.certificates import Key, self_signed


def make(directory: Path, name: str, key: Key | None = None, passphrase: bytes = b"") -> TlsConfig:
    """A certificate for `name` and its key, as two files."""
    directory.mkdir(exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key, name)
    pem = serialization.Encoding.PEM
    locked = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    files = TlsConfig(str(directory / "cert.pem"), str(directory / "key.pem"))
    Path(files.cert).write_bytes(certificate.public_bytes(pem))
    Path(files.key).write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    return files


def served(context: ssl.SSLContext, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
    """The name in the certificate that a client is shown."""
    near, far = socket.socketpair()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = version

    def serve() -> None:
        try:
            context.wrap_socket(far, server_side=True).close()
        except ssl.SSLError:
            far.close()

    server = threading.Thread(target=serve)
    server.start()
    try:
        with client.wrap_socket(near) as connection:
            der = connection.getpeercert(binary_form=True)
    finally:
        near.close()
        server.join()
    assert der is not None
    common = x509.load_der_x509_certificate(der).subject
    return str(common.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


class Node:
    """A certificate in use, and how often a new one was handed over."""

    def __init__(self, files: TlsConfig) -> None:
        self.settings = Settings(Config(tls=files))
        self.certificate = Certificate(self.settings, files)
        self.used: list[ssl.SSLContext] = []

    @property
    def name(self) -> str:
        return served(self.used[-1] if self.used else self.certificate.context)

    def watch(self, change: Callable[[], object], until: Callable[[], bool]) -> None:
        """Make a change while it watches, and wait for what it does."""

        async def play() -> None:
            watching = asyncio.create_task(self.certificate.watch(self.used.append))
            await asyncio.sleep(0.05)
            change()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if until():
                    break
            await asyncio.sleep(0.1)
            watching.cancel()

        asyncio.run(play())


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.01)


def test_a_new_pair_is_used_once(tmp_path: Path) -> None:
    node = Node(make(tmp_path, "old"))
    assert node.name == "old"
    node.watch(lambda: None, lambda: False)
    assert node.used == []
    node.watch(lambda: make(tmp_path, "new"), lambda: bool(node.used))
    assert node.name == "new"
    assert len(node.used) <= 2, "between the two files it may have looked"


def test_a_link_to_another_pair_as_certbot_makes_it(tmp_path: Path) -> None:
    for name in ("old", "new"):
        make(tmp_path / name, name)
    live = tmp_path / "live"
    live.symlink_to("old")
    node = Node(TlsConfig(str(live / "cert.pem"), str(live / "key.pem")))

    def renew() -> None:
        link = tmp_path / "next"
        link.symlink_to("new")
        link.replace(live)

    node.watch(renew, lambda: bool(node.used))
    assert node.name == "new"
    assert len(node.used) == 1


def test_another_kind_of_key_replaces_the_old_one(tmp_path: Path) -> None:
    node = Node(make(tmp_path, "old", rsa.generate_private_key(65537, 2048)))
    make(tmp_path, "new")
    node.certificate.renew(node.used.append)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert served(node.used[-1], version) == "new"


def test_half_of_a_pair_is_not_used_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(make(tmp_path / "live", "old"))
    new = make(tmp_path / "new", "new")
    with caplog.at_level(logging.INFO):
        node.watch(
            lambda: shutil.copy(new.cert, tmp_path / "live/cert.pem"),
            lambda: "stays in use" in caplog.text,
        )
        assert node.used == []
        assert caplog.text.count("the old certificate stays in use") == 1
        node.watch(
            lambda: shutil.copy(new.key, tmp_path / "live/key.pem"),
            lambda: bool(node.used),
        )
    assert node.name == "new"
    assert "BEGIN" not in caplog.text


def test_other_files_after_a_reload(tmp_path: Path) -> None:
    node = Node(make(tmp_path / "old", "old"))
    node.settings.current = Config(tls=make(tmp_path / "new", "new"))
    node.certificate.renew(node.used.append)
    assert node.name == "new"


def test_turned_off_in_the_file_it_goes_on_until_the_restart(tmp_path: Path) -> None:
    node = Node(make(tmp_path, "old"))
    node.settings.current = Config()
    make(tmp_path, "new")
    node.certificate.renew(node.used.append)
    assert node.name == "new"


def test_no_tls_below_1_2(tmp_path: Path) -> None:
    context = load(make(tmp_path, "podyd"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert served(context, ssl.TLSVersion.TLSv1_2) == "podyd"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = make(tmp_path, "podyd")
    Path(files.key).unlink()
    with pytest.raises(ConfigError, match=f"{files.key} No such file or directory"):
        load(files)


def test_a_key_with_a_passphrase_is_refused_and_nothing_asks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        load(make(tmp_path, "podyd", passphrase=b"secret"))
