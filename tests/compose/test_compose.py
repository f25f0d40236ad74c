"""docker-compose.yml, run for real: tasks from outside, scaling, restarts, and its open ports."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.deployment import Deployment
from tests.support.redis_server import free_port
from tests.support.waiting import until


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A project with one worker."""
    started = Deployment(f"qtask-test-{os.getpid()}")
    try:
        started.compose("build", "--quiet")
        started.up(workers=1)
        yield started
    finally:
        started.down("-v")


def test_task_from_outside_is_delivered(deployment: Deployment) -> None:
    ids = deployment.send(1, delay=0.5)
    deployment.wait_for(ids)


def test_only_the_gateway_is_published_and_on_loopback(deployment: Deployment) -> None:
    published = {
        (service, binding["HostIp"])
        for service in ("redis", "gateway", "scheduler", "worker")
        for container in deployment.containers(service)
        for bindings in container["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    assert published == {("gateway", "127.0.0.1")}


def test_no_process_of_qtask_runs_as_root(deployment: Deployment) -> None:
    for service in ("gateway", "scheduler", "worker"):
        assert deployment.compose("exec", "-T", service, "id", "-u").strip() == "10001"


def test_redis_persists_and_does_not_evict(deployment: Deployment) -> None:
    findings = deployment.compose("exec", "-T", "worker", "qtask", "doctor", "--host", "gateway")
    assert "BAD" not in findings
    assert "Redis keeps an append-only file" in findings
    assert "maxmemory-policy noeviction" in findings


def test_four_workers_deliver_each_task_once(deployment: Deployment) -> None:
    deployment.up(workers=4)
    assert len(deployment.containers("worker")) == 4
    assert "4 workers are alive" in deployment.compose("exec", "-T", "gateway", "qtask", "doctor")
    ids = deployment.send(400, delay=0.5, spread=1.0)
    assert len(ids) == 400
    deployment.wait_for(ids)
    assert {deployment.received()[task_id] for task_id in ids} == {1}


def test_restart_of_all_services_loses_and_repeats_nothing(deployment: Deployment) -> None:
    ids = deployment.send(1000, delay=0.5, spread=12.0)
    deployment.compose("restart", "gateway", "scheduler", "worker")
    deployment.wait_for(ids)
    assert {deployment.received()[task_id] for task_id in ids} == {1}


def test_waiting_tasks_are_delivered_after_down_and_up(deployment: Deployment) -> None:
    ids = deployment.send(100, delay=20.0)
    deployment.down()
    deployment.up(workers=2)
    deployment.wait_for(ids)
    assert {deployment.received()[task_id] for task_id in ids} == {1}


def test_remote_worker_needs_only_the_address_of_redis() -> None:
    port = str(free_port())
    settings = {"QTASK_REDIS_BIND": "127.0.0.1", "QTASK_REDIS_PORT": port, "QTASK_REDIS_PASSWORD": "secret7"}
    host = Deployment(f"qtask-cluster-{os.getpid()}", ("docker-compose.multi-host.yml",), settings)
    elsewhere = f"{host.name}_elsewhere"
    try:
        host.up(workers=0)
        ids = host.send(20, delay=0.5, attempts=1)
        address = f"redis://:secret7@127.0.0.1:{port}/0"
        # It shares the host's network and none with the project, as another host would; the receiver's name is
        # unknown there, so the tasks fail in that worker.
        host.docker(
            "run", "-d", "--name", elsewhere, "--network", "host", "-e", f"QTASK_REDIS_URL={address}", "qtask", "worker"
        )
        show = ("exec", "-T", "gateway", "qtask", "list", "--state", "dead", "--json")
        until(lambda: len(host.compose(*show).splitlines()) == len(ids), 30, every=0.5)
        assert "receiver" in host.compose(*show)
    finally:
        if host.docker("ps", "-aq", "--filter", f"name={elsewhere}").strip():
            host.docker("rm", "-f", elsewhere)
        host.down("-v")
