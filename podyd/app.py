"""The one place that builds objects: configuration, backends, services, Tornado's application."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tornado.web import Application

from podyd.api.endpoint import Endpoint, NoRoute, Requests, log_request
from podyd.api.routes import Routes, suggestion
from podyd.authclient import AuthClient
from podyd.config import Config
from podyd.errors import Unavailable
from podyd.gpus import Gpus
from podyd.host import Host
from podyd.images import Images
from podyd.lxd.client import Credentials, LxdClient
from podyd.lxd.execution import Executor
from podyd.lxd.instances import Instances
from podyd.pods import Pods
from podyd.settings import Settings
from podyd.tasks import Tasks
from podyd.telemetry import Telemetry
from podyd.usernames import UserNames
from podyd.users import Users

# At the end, what cleaning commands and removes half-made pods may take so long.
KILL_SECONDS = 3.0


@dataclass(frozen=True)
class App:
    """All that `podyd serve` runs."""

    application: Application
    client: LxdClient
    instances: Instances
    pods: Pods
    telemetry: Telemetry
    usernames: UserNames
    background: Tasks
    cleaning: Tasks
    requests: Requests

    def start(self) -> None:
        """Begin what goes on in the background; needs a running event loop."""
        self.background.spawn(self.telemetry.run(), "asking NVML")
        self.background.spawn(self.instances.watch(self._lxd_is_there), "following LXD")

    async def _lxd_is_there(self) -> None:
        self.background.spawn(self.pods.sweep(), "sweeping")

    async def stop(self, timeout: float) -> None:
        """Finish what is under way, `timeout` seconds at most, and let go of everything."""
        await self.requests.finish(timeout)
        await self.background.cancel()
        await self.cleaning.finish(KILL_SECONDS)
        self.usernames.close()
        self.client.close()


def build(settings: Settings) -> App:
    """Raises Unavailable if `podyd setup` has not been run."""
    config = settings.current
    client = LxdClient(_endpoint(config), config.lxd.project, _credentials(config))
    cleaning = Tasks()
    instances = Instances(client)
    images = Images(client, settings)
    telemetry = Telemetry()
    usernames = UserNames()
    requests = Requests()
    users = Users(AuthClient(config.auth.socket), settings)
    pods = Pods(
        client=client,
        instances=instances,
        executor=Executor(client, cleaning),
        images=images,
        gpus=Gpus(client),
        settings=settings,
        tasks=cleaning,
    )
    routes = Routes(users=users, pods=pods, images=images, host=Host(client, telemetry, usernames))
    application = Application(
        [
            (
                operation.path.replace(".", r"\."),
                Endpoint,
                {"operation": operation, "bound": bound, "users": users, "requests": requests},
            )
            for operation, bound in routes.bound().items()
        ],
        default_handler_class=NoRoute,
        default_handler_args={"suggest": suggestion},
        log_function=log_request,
    )
    return App(
        application=application,
        client=client,
        instances=instances,
        pods=pods,
        telemetry=telemetry,
        usernames=usernames,
        background=Tasks(),
        cleaning=cleaning,
        requests=requests,
    )


def _credentials(config: Config) -> Credentials:
    return Credentials(Path(config.state_dir) / "lxd")


def _endpoint(config: Config) -> str:
    if config.lxd.endpoint != "auto":
        return config.lxd.endpoint
    path = _credentials(config).endpoint
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Unavailable(
            f"LXD's address is not in {path} ({error.strerror}); run 'podyd setup' as root.",
            code="not_set_up",
        ) from error
