"""`podyd profiles`: shows how the files differ from the engine's copies, and writes them there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from podyd.base.engine_words import ENGINE
from podyd.base.errors import SetupError
from podyd.config.schema import Config
from podyd.engine import profile_files
from podyd.engine.admin import Admin
from podyd.engine.dialect import chosen
from podyd.engine.types import Profile


def run(action: str, names: Sequence[str], config: Config) -> int:
    """Print a diff per profile; write the files to the engine unless `action` is `diff`.

    Returns 1 if `diff` found a difference, as diff(1) does, else 0.
    """
    if os.geteuid() != 0:
        raise SetupError(
            "The engine's profiles are root's.",
            advice="Type 'sudo podyd profiles'.",
        )
    dialect = chosen(config.engine, Path(config.state_dir))
    dialect.speak()
    admin = Admin(dialect, config.lxd.project)
    pool, bridge = admin.pool_and_bridge()
    uuids = admin.cdi_uuids()
    differ = False
    for profile in _wanted(action, names):
        ours = profile_files.on_host(profile, pool, bridge, uuids)
        theirs = admin.profile(ours.name)
        if action == "diff":
            # The diff is from the file to the engine: what the admin has edited there shows as '+'.
            missing = theirs is None
            text = f"{ours.name} is not in {ENGINE}.\n" if missing else _diff(ours, theirs)
        else:
            text = profile_files.difference(theirs, ours, before=str(ENGINE), after="now")
        if text:
            differ = True
            print(text, end="")
            if action != "diff":
                admin.put_profile(ours)
    if not differ:
        print(f"{ENGINE}'s profiles are as in the files.")
    elif action != "diff":
        print("Done; it takes effect at the next start of a pod.")
    return int(differ and action == "diff")


def _diff(ours: Profile, theirs: Profile | None) -> str:
    assert theirs is not None
    return profile_files.difference(ours, theirs, before="file", after=str(ENGINE))


def _wanted(action: str, names: Sequence[str]) -> list[Profile]:
    files = profile_files.shipped()
    if action != "reset":
        files |= profile_files.read(profile_files.ADMIN_DIRECTORY)
    unknown = [name for name in names if name not in files]
    if unknown:
        raise SetupError(
            f"There is no file for profile {unknown[0]!r}.",
            advice=f"Known: {', '.join(files)}.",
        )
    return [files[name] for name in names or files]
