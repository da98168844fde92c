"""The list of checks in their order: each depends on those before it."""

from __future__ import annotations

from pathlib import Path

from podyd.admin.doctor import (
    advisories,
    host,
    limits,
    mounts,
    moved,
    nvidia,
    owners,
    pods,
    service,
    storage,
)
from podyd.admin.doctor import engine as on_engine
from podyd.admin.doctor.case import HOST, Case, HostPaths
from podyd.admin.doctor.finding import Finding, Level
from podyd.base.errors import ConfigError, SetupError
from podyd.config.loader import load
from podyd.config.schema import Config
from podyd.engine.admin import Admin
from podyd.engine.dialect import Dialect, chosen

# Seconds for one request to the engine; setup, which creates things, waits longer.
ENGINE_TIMEOUT = 10.0


def diagnose(path: Path, places: HostPaths = HOST) -> list[Finding]:
    """Run all checks that this process has permissions for; each wait has a timeout."""
    config = _usable(path)
    used = _used(config or Config())
    used.speak()
    findings = [
        *service.configuration(path),
        *host.cgroup2(places),
        *service.service_memory(places),
        *service.service_killed(places),
        *advisories.lxd_advisories(places, used),
        *advisories.incus_advisories(places, used),
        *advisories.nvidia_advisories(places, used),
        *_of_nvidia(places),
    ]
    if config is None:
        return findings
    case = Case(config, path, places)
    return [
        *findings,
        *service.pam_service(case),
        *service.login_service(case),
        *service.packing_service(case),
        *service.cards_service(case),
        *service.port_relay(case),
        *service.service_answers(case),
        *host.other_processes(case),
        *mounts.own_directories(case),
        *on_engine.certificate_files(case),
        *_of_engine(case),
    ]


def _of_nvidia(places: HostPaths) -> list[Finding]:
    if not nvidia.is_there(places):
        return nvidia.nvidia_card()
    return [
        *nvidia.nvidia_driver(places),
        *nvidia.nvidia_versions(places),
        *nvidia.nvidia_nodes(places),
        *nvidia.nvidia_scrubbing(places),
        *nvidia.nvml_answers(places),
        *nvidia.nvidia_persistence(places),
    ]


def _of_engine(case: Case) -> list[Finding]:
    findings = on_engine.engine_answers(case, ENGINE_TIMEOUT)
    if any(finding.level is not Level.OK for finding in findings):
        return findings
    admin = Admin(case.dialect, case.project, ENGINE_TIMEOUT)
    findings += [
        *advisories.engine_program(admin, case.places),
        *on_engine.engine_pool(admin, case),
        *on_engine.engine_bridge(admin, case),
        *limits.engine_limits(admin, case, admin.place.unit),
        *on_engine.engine_address(admin, case),
        *on_engine.engine_project(admin, case),
        *host.id_ranges(admin, case.places),
        *host.kernel_limits(admin, case.places),
        *mounts.own_ids(admin, case),
        *storage.disk_space(admin, admin.place.directory),
        *moved.left_engine(case, ENGINE_TIMEOUT),
    ]
    if not _has_project(admin):
        return findings
    return [
        *findings,
        *on_engine.engine_profiles(admin, case),
        *on_engine.pod_addresses(admin, case),
        *on_engine.engine_images(admin, case),
        *on_engine.half_made_pods(admin, case),
        *moved.interrupted_move(admin, case, ENGINE_TIMEOUT),
        *moved.limits_aside(admin, case),
        *storage.disk_limits(admin, case),
        *storage.snapshot_restores(admin, case),
        *on_engine.certificate_trust(admin, case),
        *on_engine.certificate_works(case),
        *owners.pod_owners(admin, case),
        *pods.gpu_devices(admin, case),
        *pods.gpu_identities(admin, case),
        *pods.nvidia_runtime(admin, case),
        *pods.pods_driver(admin, case),
    ]


def _has_project(admin: Admin) -> bool:
    """False also if the engine does not answer; that is a finding already."""
    try:
        return admin.project_config() is not None
    except SetupError:
        return False


def _used(config: Config) -> Dialect:
    """The engine that podyd uses."""
    return chosen(config.engine, Path(config.state_dir))


def _usable(path: Path) -> Config | None:
    try:
        return load(path)
    except ConfigError:
        return None
