"""What LXDs say that can be had as a snap only, of which none was at hand: from their source.

github.com/canonical/lxd, shared/version/api.go, by tag; `main` is of 22 August 2026 (a83edf2a),
with pull request 18559. As far as podyd asks for it, and one more that all of them have.
"""

from __future__ import annotations

_ALL = frozenset({"projects"})
_RUNTIME = frozenset({"nvidia_runtime", "nvidia_runtime_config"})
_LATER = frozenset(
    {"gpu_cdi_hotplug", "storage_and_profile_operations", "storage_and_network_operations"}
)
EXTENSIONS = {
    "lxd-5.0.2": _ALL | _RUNTIME,
    "lxd-5.21.7": _ALL | _RUNTIME | {"gpu_cdi"},
    "lxd-6.7": _ALL | _RUNTIME | {"gpu_cdi", "gpu_cdi_amd", "storage_and_profile_operations"},
    "lxd-6.9": _ALL | _RUNTIME | _LATER | {"gpu_cdi", "gpu_cdi_amd"},
    "main": _ALL | _LATER | {"gpu_cdi", "gpu_cdi_amd", "gpu_mig_cdi"},
}
WANTS_CDI = {tag: tag == "main" for tag in EXTENSIONS}
