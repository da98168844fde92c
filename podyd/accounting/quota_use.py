"""What each member uses of their quota."""

from __future__ import annotations

import asyncio

from podyd.base.quantities import UNLIMITED
from podyd.contract.admin import QuotaUse
from podyd.engine.interface import Instances
from podyd.gpus.scheduler import Scheduler
from podyd.model.member import Member
from podyd.model.pod import pods_of
from podyd.people.login import Logins
from podyd.pods.catalogue import Catalogue
from podyd.pods.disks import limit_of


class QuotaUses:
    """Counts as the checks of a quota count."""

    def __init__(
        self, *, logins: Logins, instances: Instances, images: Catalogue, scheduler: Scheduler
    ) -> None:
        self._logins = logins
        self._instances = instances
        self._images = images
        self._scheduler = scheduler

    async def all(self) -> list[tuple[Member, QuotaUse]]:
        """Every member with what they use."""
        pods = pods_of(await self._instances.all())
        images = await self._images.all()
        view = await self._scheduler.view()
        uses: list[tuple[Member, QuotaUse]] = []
        for member in await self._logins.all():
            limits = [limit_of(pod.instance) for pod in pods if pod.is_of(member)]
            theirs = [image for image in images if image.is_of(member)]
            use = QuotaUse(
                pods=len(limits),
                gpus=view.counted(member),
                disk=None if UNLIMITED in limits else sum(limits),
                images=len(theirs),
                image_size=sum(image.size for image in theirs),
            )
            uses.append((member, use))
            # A thousand members take a fifth of a second.
            await asyncio.sleep(0)
        return uses
