"""Flow rules, the default limits of the configuration: which tasks get them, and what they leave in Redis."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask import Client
from qtask.config import load
from qtask.destinations.parsing import check_task
from qtask.model.flow import Limits
from qtask.model.flow_rule import FlowRule, check_rules
from qtask.model.ids import stored_id
from qtask.store import keys, stock_delivery, tasks
from qtask.store.flow_records import pause_flow, remove_flow, replace_flow, set_flow, show_flow
from qtask.store.flow_rules import set_rules
from qtask.store.nodes import Nodes
from qtask.store.queries import run
from qtask.store.submit import Batch, Submission, submit
from tests.integration.test_flows import claim, flow_keys, queued, release, settle, task, waiting
from tests.support.gateway_process import Gateway
from tests.support.redis_server import RedisServer

HOST = "https://api.example.org"
LINK = f"{HOST}/hook"


def rules(**limits: Any) -> tuple[FlowRule, ...]:
    return check_rules({HOST: limits}, "flow")


def send(redis: Redis, *dicts: dict[str, Any], given: tuple[FlowRule, ...] | None = None) -> list[str]:
    """Submits as a gateway with these rules does, or as another client."""
    places = submit(redis, Nodes(given), Batch("qtask", [Submission(check_task(one)) for one in dicts]))
    return [place.id for place in places if place is not None]


def extra(redis: Redis, task_id: str) -> Any:
    return redis.hget(keys.job(task_id), "extra")


def own_keys(redis: Redis) -> set[str]:
    return flow_keys(redis) - {keys.FLOW_RULES}


def test_destination_that_matches_gets_the_limits_of_the_rule(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 4, task(link="https://other.example.org/"), given=rules(parallel=2))
    assert extra(redis, ids[0]) == b'{"flow":"https://api.example.org","rule":"https://api.example.org"}'
    assert extra(redis, ids[4]) is None
    release(redis)
    assert sorted(queued(redis)) == sorted([*ids[:2], ids[4]]) and waiting(redis, HOST) == ids[2:4]
    claimed = claim(redis)
    assert [claimed[one] for one in ids[:2]] == [HOST, HOST]
    settle(redis, [(ids[0], HOST)])
    assert queued(redis) == ids[2:3]
    settle(redis, [(ids[1], HOST), *claim(redis).items()])
    settle(redis, claim(redis).items())
    assert own_keys(redis) == set(), "an idle flow whose limits are only defaults leaves no key"


def test_each_destination_that_matches_a_pattern_has_its_own_limit(redis: Redis) -> None:
    given = check_rules({"https://*.example.org": {"parallel": 1}}, "flow")
    hosts = ["https://a.example.org", "https://b.example.org"]
    ids = send(redis, *[task(link=f"{host}/") for host in hosts for _ in range(2)], given=given)
    release(redis)
    assert sorted(queued(redis)) == [ids[0], ids[2]]
    assert [waiting(redis, host) for host in hosts] == [[ids[1]], [ids[3]]]


def test_key_of_a_task_is_matched_and_not_its_destination(redis: Redis) -> None:
    given = check_rules({"tenant-*": {"parallel": 1}, HOST: {"parallel": 5}}, "flow")
    ids = send(redis, task("tenant-7", LINK), task("tenant-7", LINK), task("other", LINK), given=given)
    assert [extra(redis, one) for one in ids[1:]] == [b'{"flow":"tenant-7","rule":"tenant-*"}', b'{"flow":"other"}']
    release(redis)
    assert sorted(queued(redis)) == [ids[0], ids[2]]


def test_chosen_id_has_rank_and_rule(redis: Redis) -> None:
    send(redis, task(link=LINK, id="mine"), given=rules(ordered=True))
    stored = extra(redis, stored_id("mine"))
    assert b'"rank":"' in stored and stored.endswith(b'"rule":"https://api.example.org"}')


def test_clients_that_submit_to_redis_read_the_rules_of_the_gateway(redis: Redis) -> None:
    assert extra(redis, send(redis, task(link=LINK))[0]) is None
    set_rules(rules(parallel=1)).run(redis)
    assert b"rule" in extra(redis, send(redis, task(link=LINK))[0])


def test_limits_that_were_set_or_given_with_a_task_override_the_rule(redis: Redis) -> None:
    set_flow(redis, HOST, Limits(parallel=3))
    ids = send(redis, *[task(link=LINK)] * 5, given=rules(parallel=1, rate=1000, burst=100))
    release(redis)
    assert queued(redis) == ids[:3]
    record = show_flow(redis, HOST)
    assert (record.parallel, record.rate, record.burst) == (3, 1000, 100)
    assert record.limits_from == {"parallel": "set", "rate": "configuration"}
    send(redis, task({"parallel": 2, "rate": 5}, LINK))
    record = show_flow(redis, HOST)
    assert (record.parallel, record.rate, record.per, record.burst) == (2, 5, 1, 1), "the rate is one with its burst"
    assert record.limits_from == {"parallel": "task", "rate": "task"}


def test_removed_limit_returns_the_default(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 4, given=rules(parallel=1))
    release(redis)
    replace_flow(redis, HOST, Limits(parallel=3))
    release(redis)
    assert queued(redis) == ids[:3]
    remove_flow(redis, HOST)
    assert show_flow(redis, HOST).parallel == 1
    assert show_flow(redis, HOST).limits_from == {"parallel": "configuration"}


def test_changed_rules_hold_for_flows_and_tasks_that_are_there(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 4, task(link=LINK, time=0.3), given=rules(parallel=1))
    release(redis)
    assert queued(redis) == ids[:1]
    set_rules(rules(parallel=3)).run(redis)
    settle(redis, claim(redis).items())
    assert queued(redis) == ids[1:4]
    set_rules(()).run(redis)
    settle(redis, claim(redis).items())
    time.sleep(0.31)
    release(redis)
    assert queued(redis) == ids[4:], "the rule that it names does not exist any more"
    assert flow_keys(redis) == set()


def test_more_specific_rule_replaces_the_rule_of_a_flow(redis: Redis) -> None:
    general = check_rules({"https://*": {"parallel": 1}}, "flow")
    both = check_rules({"https://*": {"parallel": 1}, "https://api*": {"parallel": 3}}, "flow")
    ids = send(redis, *[task(link=LINK)] * 2, given=general)
    release(redis)
    assert queued(redis) == ids[:1]
    send(redis, task(link=LINK, time=0.2))
    ids += send(redis, *[task(link=LINK)] * 2, given=both)
    release(redis)
    assert queued(redis) == ids[:3]
    time.sleep(0.21)
    release(redis)
    assert show_flow(redis, HOST).parallel == 3, "an older task with the other rule does not bring that back"
    ids += send(redis, *[task(link=LINK)] * 2, given=general)
    assert extra(redis, ids[4]).endswith(b'"rule":"https://*"}')
    release(redis)
    assert show_flow(redis, HOST).parallel == 1, "the rule with the longer pattern is gone"


def test_idle_flow_keeps_its_key_until_its_rate_allows_a_burst_again(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 2, given=rules(rate=2, burst=2))
    release(redis)
    settle(redis, claim(redis).items())
    assert own_keys(redis) != set()
    ids += send(redis, task(link=LINK))
    release(redis)
    assert queued(redis) == [], "the tokens are used"
    until = time.monotonic() + 20
    while not queued(redis):
        release(redis)
        assert time.monotonic() < until
    settle(redis, claim(redis).items())
    while own_keys(redis):
        release(redis)
        assert time.monotonic() < until
    assert ids


def test_own_limits_and_a_pause_keep_the_key_of_an_idle_flow(redis: Redis) -> None:
    (one,) = send(redis, task(link=LINK), given=rules(parallel=1))
    pause_flow(redis, HOST)
    release(redis)
    assert waiting(redis, HOST) == [one]
    assert tasks.cancel(redis, one) == "waiting"
    release(redis)
    assert show_flow(redis, HOST).state == "paused"
    pause_flow(redis, HOST, False)
    release(redis)
    assert own_keys(redis) == set()


def test_dead_letter_that_is_retried_obeys_the_rule(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 2, given=rules(parallel=1))
    for _ in ids:
        release(redis)
        settle(redis, claim(redis).items(), "failed")
    assert own_keys(redis) == set()
    assert len(tasks.retry(redis, ids)) == 2
    claimed = [one for _ in range(3) for one in claim(redis)]
    assert len(claimed) == 1, "the flow has one slot"
    settle(redis, [(claimed[0], HOST)])
    assert list(claim(redis)) == [one for one in ids if one not in claimed]


def test_stock_worker_obeys_the_rule(redis: Redis) -> None:
    ids = send(redis, *[task(link=LINK)] * 2, given=rules(parallel=1))
    for one in ids:  # as RQ's own tools enqueue
        redis.hset(keys.job(one), "status", "queued")
    begun = [stock_delivery.read_begun(stock_delivery.begin(one, "qtask", HOST).run(redis)) for one in ids]
    assert [one.may_begin for one in begun] == [False, False], "no slot was admitted"
    assert begun[0].flow_name == HOST


def test_gateway_writes_its_rules_and_restores_lost_ones(redis: Redis) -> None:
    nodes = Nodes(rules(parallel=1))
    assert run(redis, nodes.take()).rules is not None
    set_rules(rules(parallel=7)).run(redis)  # of a gateway that started later
    run(redis, nodes.take()).ends = 0.0
    run(redis, nodes.take())
    assert redis.hget(keys.FLOW_RULES, HOST) == b'{"parallel":7}'
    redis.flushall()
    run(redis, nodes.take()).ends = 0.0
    run(redis, nodes.take())
    assert redis.hget(keys.FLOW_RULES, HOST) == b'{"parallel":1}'
    assert run(redis, Nodes(()).take()).rules is None
    assert not redis.exists(keys.FLOW_RULES), "a gateway without rules has removed them"


def test_process_without_rules_sends_no_call_for_them(redis: Redis) -> None:
    redis.config_resetstat()
    nodes = Nodes()
    for _ in range(3):
        submit(redis, nodes, Batch("qtask", [Submission(check_task(task(link=LINK)))]))
    info: Any = redis.info("commandstats")
    calls = sum(info[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in info)
    failed = sum(info[name].get("failed_calls", 0) for name in ("cmdstat_evalsha",) if name in info)
    assert calls - failed == 4, "one for the number, one for each batch"


@pytest.mark.parametrize("form", ["file", "environment"])
def test_gateway_process_applies_its_configuration(
    form: str, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    environment = {}
    if form == "file":
        (tmp_path / "qtask.toml").write_text(f'[flow."{HOST}"]\nparallel = 2\nrate = 0.5\nper = 10\n')
        environment["QTASK_CONFIG"] = str(tmp_path / "qtask.toml")
    else:
        environment["QTASK_FLOW"] = f'{{"{HOST}": {{"parallel": 2, "rate": 0.5, "per": 10}}}}'
    assert load({}, environment).flow_rules == rules(parallel=2, rate=0.5, per=10)
    with Gateway(redis_server.url, tmp_path, environment) as gateway, Client(gateway.url) as client:
        accepted = client.http(LINK, delay=60)
        assert extra(redis, accepted.id).endswith(b'"rule":"https://api.example.org"}')
