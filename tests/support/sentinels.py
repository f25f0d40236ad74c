"""A real replicated Redis for tests: a master, a replica, and three sentinels, each a separate process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError

from qtask.run.server_binary import find_server
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

SERVICE = "mymaster"
DOWN_AFTER_MS = 700  # without an answer, after which a sentinel counts a server as down


class Sentinels:
    """All five; a context manager.

    Args:
        folder: gets their data.
        password: of the two servers.
        sentinel_password: of the sentinels.

    Attributes:
        servers: master and replica, in any order after a failover.
        url: the address by which QTask finds the master.
    """

    def __init__(self, folder: Path, password: str, sentinel_password: str) -> None:
        self._folder = folder
        self._password = password
        self._sentinel_password = sentinel_password
        first, second = folder / "first", folder / "second"
        first.mkdir()
        second.mkdir()
        options = ("--appendonly", "yes", "--masterauth", password, "--repl-diskless-sync-delay", "0")
        master = RedisServer(first, *options, password=password)
        replica = RedisServer(second, *options, "--replicaof", "127.0.0.1", str(master.port), password=password)
        self.servers = [master, replica]
        self.ports = [free_port() for _ in range(3)]
        self._sentinels = [self._start_sentinel(port, master.port) for port in self.ports]

    def __enter__(self) -> Sentinels:
        try:
            self.wait_until_whole()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.kill()

    @property
    def url(self) -> str:
        """With the password as that of the default user."""
        return self.url_as(f":{quote(self._password, safe='')}", self._sentinel_password)

    def url_as(self, credentials: str, sentinel_password: str) -> str:
        """The address with other credentials."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return (
            f"redis+sentinel://{credentials}@{hosts}/{SERVICE}/0?sentinel_password={quote(sentinel_password, safe='')}"
        )

    @property
    def master(self) -> RedisServer:
        """The current master, according to the first sentinel."""
        return self._master_for(self.ports[0])

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def wait_for_another_master(self, than: RedisServer) -> RedisServer:
        """Waits until all sentinels agree that another server is the master, and it is; returns it."""
        (other,) = [server for server in self.servers if server is not than]
        until(lambda: all(self._master_for(port) is other for port in self.ports), 30, "another master", every=0.05)
        until(lambda: role_of(other) == "master", 30, "another master", every=0.05)
        return other

    def wait_until_whole(self) -> None:
        """Waits until every sentinel sees the others, the master and a replica, and the replica has all data."""
        until(lambda: all(self._sees_all(port) for port in self.ports), 30, "sentinels that see everybody", every=0.05)
        until(lambda: _is_linked(self.replica.client()), 30, "a replica that has all data", every=0.05)

    def _master_for(self, port: int) -> RedisServer:
        with self._sentinel(port) as sentinel:
            _, master_port = sentinel.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == master_port)

    def _sees_all(self, port: int) -> bool:
        try:
            with self._sentinel(port) as sentinel:
                master: Any = sentinel.sentinel_master(SERVICE)
                replicas: Any = sentinel.sentinel_slaves(SERVICE)
        except RedisError:
            return False
        return (
            (master["flags"], master["num-other-sentinels"]) == ("master", 2)
            and [replica["flags"] for replica in replicas] == ["slave"]
            and [replica["master-link-status"] for replica in replicas] == ["ok"]
        )

    def _sentinel(self, port: int) -> Redis:
        return Redis(port=port, password=self._sentinel_password, decode_responses=True)

    def _start_sentinel(self, port: int, master_port: int) -> subprocess.Popen[bytes]:
        folder = self._folder / f"sentinel-{port}"
        folder.mkdir()
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {port}\n"
            f"dir {folder}\n"
            f'requirepass "{self._sentinel_password}"\n'
            f'sentinel sentinel-pass "{self._sentinel_password}"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {master_port} 2\n"
            f'sentinel auth-pass {SERVICE} "{self._password}"\n'
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        return subprocess.Popen([find_server(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL)


def role_of(server: RedisServer) -> str:
    """`master` or `slave`; empty during a change, when sentinels close its connections."""
    try:
        return str(server.client().info("replication")["role"])
    except RedisError:
        return ""


def _is_linked(replica: Redis) -> bool:
    about = replica.info("replication")
    return bool(about["role"] == "slave" and about["master_link_status"] == "up")
