"""`podyd setup`, which prepares a machine for podyd, as root.

Every step is idempotent, so that it can be run again at any time.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from podyd.admin import kernel
from podyd.admin.migration import lock as migration
from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError
from podyd.base.files import make_directory
from podyd.config.schema import Config
from podyd.engine import profile_files
from podyd.engine.admin import Admin, Openings
from podyd.engine.dialect import AUTO, CHOICE, INCUS, Dialect, kept, listening, named
from podyd.engine.rest import Credentials
from podyd.node import netlink
from podyd.node.directories import fit_directories

PAM_DIRECTORY = Path("/etc/pam.d")
PAM_FILE = Path(__file__).parents[1] / "data/pam.d-podyd"
CERTIFICATE_DAYS = 3650

Say = Callable[[str], None]


def prepare(config: Config, user: str, say: Say) -> None:
    """Prepare accounts, files and the engine for `podyd serve` as `user`; `say` is called per
    change.

    Raises SetupError.
    """
    try:
        with migration.without(config.state_dir, SetupError):
            if os.geteuid() != 0:
                raise SetupError(
                    "Setting up needs root.",
                    advice="Type 'sudo podyd setup'.",
                )
            _prepare_all(config, user, say)
    except OSError as error:
        raise SetupError(
            f"{error.filename} cannot be prepared ({error.strerror}). Where podyd.yaml names other"
            " places than the usual, podyd-setup.service needs them in ReadWritePaths=."
        ) from error


def free_network() -> IPv4Network:
    """A network for a bridge that the host does not use."""
    return netlink.free_network(netlink.used_networks())


def _prepare_all(config: Config, user: str, say: Say) -> None:
    _prepare_helper(config)
    kernel.raise_limits(say)
    dialect = choose(config, say)
    dialect.speak()
    admin = reach(dialect, config.lxd.project)
    account = _prepare_user(user, say)
    _prepare_pam(config.auth.pam_service, say)
    pool = admin.prepare_pool(say)
    bridge = admin.prepare_bridge(free_network, say)
    admin.prepare_project(bridge, openings(config), say)
    prepare_access(admin, Credentials.below(config.state_dir, dialect), account.pw_gid, say)
    keep_choice(config.state_dir, dialect, account.pw_gid)
    _prepare_data(config.data_dir, account, say)
    uuids = admin.cdi_uuids()
    for profile in profile_files.shipped().values():
        if admin.profile(profile.name) is None:
            admin.put_profile(profile_files.on_host(profile, pool, bridge, uuids))
            say(f"put profile {profile.name} into {ENGINE}")


def choose(config: Config, say: Say) -> Dialect:
    """The engine for pods: what podyd.yaml says, what was chosen before, the one that runs; where
    both do, the one that has podyd's project (if both have, the one with pods in it, as a
    migration leaves the project behind), else the one that has instances, else Incus, of which
    known holes are mended soonest.

    What was chosen stays, also while it does not run: pods are in it. Raises SetupError.
    """
    if config.engine != AUTO:
        return named(config.engine)
    before = kept(Path(config.state_dir))
    if before is not None:
        return before
    engines = listening()
    if not engines:
        raise SetupError(
            "No engine for pods is running here: neither LXD nor Incus.",
            advice="Install one ('apt install incus-base', or 'apt install lxd') or start it"
            " ('systemctl start incus', 'systemctl start lxd').",
        )
    if len(engines) == 1:
        return engines[0]
    dialect = max(engines, key=lambda engine: _claims(engine, config.lxd.project))
    names = " and ".join(engine.name for engine in engines)
    say(
        f"{names} run here; pods are made in {dialect.name}. To change that, write"
        f" 'engine: {next(engine.key for engine in engines if engine != dialect)}' into podyd.yaml"
        " and run 'podyd setup' again"
    )
    return dialect


def _claims(engine: Dialect, project: str) -> tuple[bool, ...]:
    """What speaks for an engine, the strongest first."""
    engine.speak()  # If it does not answer, the error names it.
    admin = reach(engine, project)
    has_project = admin.project_config() is not None
    return has_project, has_project and admin.has_pods(), admin.has_instances(), engine == INCUS


def reach(dialect: Dialect, project: str) -> Admin:
    """The engine, as root. Raises SetupError, which says how to use the other one if that runs."""
    try:
        return Admin(dialect, project)
    except SetupError as error:
        other = next((other for other in listening() if other != dialect), None)
        if other is None:
            raise
        way = f"Or write 'engine: {other.key}' into podyd.yaml; its pods are others."
        raise SetupError(error.detail, advice=f"{error.advice} {way}".lstrip()) from error


def keep_choice(state_dir: str, dialect: Dialect, group: int) -> None:
    """Write down which engine has the pods, for `engine: auto`."""
    path = Path(state_dir) / CHOICE
    text = f"{dialect.key}\n"
    if not path.exists() or path.read_bytes() != text.encode():
        _write(path, text, group=group, mode=0o640)


def openings(config: Config) -> Openings:
    """What pods need for 'pods.mounts': the paths, and the ids of accounts with a directory."""
    paths = {mount.prefix for mount in config.pods.mounts}
    owned = [directory for path in paths for directory in fit_directories(Path(path))]
    return Openings(
        paths=frozenset(paths),
        uids=frozenset(str(directory.uid) for directory in owned),
        gids=frozenset(str(directory.gid) for directory in owned),
    )


def leave_reason(path: Path, text: str) -> None:
    """Write why setup failed to a file that the service reads if it cannot start."""
    with contextlib.suppress(OSError):  # For example not root; the reason is on stderr as well.
        make_directory(path.parent)
        _write(path, f"{text}\n", group=0, mode=0o644)


def _prepare_user(name: str, say: Say) -> pwd.struct_passwd:
    """The system account that the service runs as."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/var/lib/podyd", "--shell", "/usr/sbin/nologin", "--", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"The system account {name} cannot be made: {done.stderr.strip()}.")
    say(f"made system account {name}")
    return pwd.getpwnam(name)


def _prepare_pam(service: str, say: Say) -> None:
    path = PAM_DIRECTORY / service
    if not path.exists():
        _write(path, PAM_FILE.read_text(encoding="utf-8"), group=0, mode=0o644)
        say(f"wrote {path}")


def _prepare_helper(config: Config) -> None:
    """Write the environment of podyd-auth.service, which does not read podyd.yaml itself."""
    make_directory(config.helper_environment.parent)
    text = f"PAM_SERVICE={config.auth.pam_service}\n"
    _write(config.helper_environment, text, group=0, mode=0o644)


def prepare_access(admin: Admin, credentials: Credentials, group: int, say: Say) -> None:
    """Write the engine's address and the certificates of both sides for the service.

    The files are root's: the service may read its key and change nothing.
    """
    for directory in (credentials.directory.parent, credentials.directory):
        directory.mkdir(parents=True, exist_ok=True)
        os.chown(directory, 0, group)
        directory.chmod(0o750)
    if not (credentials.certificate.exists() and credentials.key.exists()):
        key, certificate = make_certificate()
        _write(credentials.key, key, group=group, mode=0o640)
        _write(credentials.certificate, certificate, group=group, mode=0o640)
        say(f"made podyd's certificate in {credentials.directory}")
    os.chown(credentials.key, 0, group)
    certificate = credentials.certificate.read_text(encoding="ascii")
    for path, text in (
        (credentials.endpoint, admin.prepare_address(say) + "\n"),
        (credentials.server_certificate, admin.server_certificate()),
    ):
        if not path.exists() or path.read_text(encoding="ascii") != text:
            _write(path, text, group=group, mode=0o640)
            say(f"wrote {path}")
    admin.prepare_trust(certificate, fingerprint(certificate), say)


def fingerprint(certificate_pem: str) -> str:
    """The engine's fingerprint of a certificate. Raises ValueError if it is not a certificate."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return certificate.fingerprint(hashes.SHA256()).hex()


def _prepare_data(directory: Path, account: pwd.struct_passwd, say: Say) -> None:
    """Create the service's directory, which only the service may read and write."""
    if not directory.exists():
        directory.mkdir()
        say(f"made {directory}")
    os.chown(directory, account.pw_uid, account.pw_gid)
    directory.chmod(0o700)


def make_certificate() -> tuple[str, str]:
    """A new key and a self-signed certificate, in PEM.

    P-256: a TLS handshake costs the engine a tenth of what an RSA key would.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "podyd")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # It must stay valid if the clock is set back a little.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode(), certificate.public_bytes(pem).decode()


def _write(path: Path, text: str, *, group: int, mode: int) -> None:
    """Write a file atomically, also where the power fails; it is never readable for others
    meanwhile."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
