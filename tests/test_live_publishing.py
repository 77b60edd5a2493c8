"""Synchronous ``publish()`` in processes that run no server: threads, forks, pools, scripts, and Redis frozen."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from .live import SERVERS, Client, Redis, System, running_system
from .test_live_redis import wait

PRELUDE = """
import json, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # that is what is tested here
URL = os.environ["REDIS_URL"]
os.environ["REDIS_URL"] += "?client_name=publisher"
import django, redis
django.setup()
from realtime import publish
from realtime.exceptions import LayerUnavailable

def ask(*command):
    with redis.Redis.from_url(URL) as client:
        return client.execute_command(*command)

def connections():
    return sum(client["name"] == "publisher" for client in ask("CLIENT LIST"))

def tell(**found):
    print(json.dumps(found), flush=True)

def publish_all(name, count):
    for number in range(count):
        publish("numbers", [name, number])

def in_threads(count, work):
    threads = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
"""What each script begins with: its connections to Redis can be told from those of others."""

FORKS = {
    "fork and os._exit": """
def start(work):
    pid = os.fork()
    if pid:
        return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)
""",
    "fork and sys.exit": """
def start(work):
    pid = os.fork()
    if pid:
        return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    work()
    sys.exit()
""",
    "multiprocessing": """
import multiprocessing
def start(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    def join():
        process.join()
        return process.exitcode
    return join
""",
}
"""How a process can make a child that goes on with its memory: each returns what waits for the child's exit code."""


@pytest.fixture(scope="module")
def shared() -> Iterator[System]:
    """Both servers on one Redis."""
    with running_system(*((kind, {}) for kind in SERVERS), heartbeats=False) as system:
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    with shared.told():
        yield shared


@pytest.fixture
def bare(redis: Redis) -> Iterator[System]:
    """A Redis with nobody on it."""
    system = System(redis)
    try:
        yield system
    finally:
        system.stop()


@asynccontextmanager
async def subscribers(system: System) -> AsyncIterator[list[Client]]:
    """Connect a client to each server that is told of what is lost."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(server.url)) for server in system.servers]
        for client in clients:
            await client.subscribe("numbers")
        yield clients


async def run(system: System, code: str, **env: str) -> list[dict[str, Any]]:
    """Return what a script tells, which must end well and say nothing else."""
    script = system.script(PRELUDE + code, **env)
    try:
        assert await wait(script) == 0, script.output
    finally:
        script.stop()
    return [json.loads(line) for line in script.lines]


async def assert_each_got(clients: list[Client], counts: dict[str, int]) -> None:
    """Assert that each client gets so many numbers of each publisher next, each publisher's in order, and no more."""
    for client in clients:
        got = sorted(await client.publications(sum(counts.values())), key=itemgetter(0))
        numbers = {name: [number for _, number in some] for name, some in groupby(got, key=itemgetter(0))}
        assert numbers == {name: list(range(count)) for name, count in counts.items()}
        await client.echo()


GAP = object()


async def everything_until(client: Client, last: Any) -> list[Any]:
    """Return the data of all publications up to ``last``, and ``GAP`` where one told of a loss."""
    got: list[Any] = []
    while not got or got[-1] != last:
        message = await client.receive()
        got.append(GAP if message["type"] == "gap" else message["data"])
    return got


# Threads


async def test_eight_threads_at_once_each_keep_their_order(system: System) -> None:
    code = """
together = threading.Barrier(8)
def work(number):
    together.wait()
    publish_all(str(number), 100)
in_threads(8, work)
tell(connections=connections())
"""
    async with subscribers(system) as clients:
        assert await run(system, code) == [{"connections": 1}]
        await assert_each_got(clients, {str(number): 100 for number in range(8)})


async def test_one_loop_and_one_connection_serve_a_process_however_long(bare: System) -> None:
    code = """
def look():
    tell(threads=threading.active_count(), connections=connections(), files=len(os.listdir("/proc/self/fd")))
publish("news", 0)
look()
for number in range(200):
    publish("news", number)
look()
in_threads(50, lambda number: publish("news", number))
look()
"""
    looks = await run(bare, code)
    assert looks == [looks[0]] * 3
    assert looks[0]["connections"] == 1
    assert looks[0]["threads"] == 2


async def test_publish_returns_when_redis_has_answered(bare: System) -> None:
    code = """
def taken():
    return ask("INFO", "commandstats")["cmdstat_publish"]["calls"]
for number in range(20):
    publish("news", number)
    tell(taken=taken())
"""
    assert await run(bare, code) == [{"taken": number} for number in range(1, 21)]


async def test_threads_that_begin_at_once_share_one_layer(bare: System) -> None:
    code = """
from realtime.layers import configured_layer
together = threading.Barrier(8)
layers = []
def work(number):
    together.wait()
    layers.append(configured_layer())
in_threads(8, work)
tell(layers=len({id(layer) for layer in layers}))
"""
    assert await run(bare, code) == [{"layers": 1}]


# Forks


PREFORK = """
ready, done = os.pipe()
stop, go = os.pipe()
publish_all("parent before", 1)

def work(name):
    os.close(go)
    publish_all(name, 50)
    os.write(done, b".")
    os.read(stop, 1)  # until the parent says so, or ends

joins = [start(lambda: work(str(number))) for number in range(WORKERS)]
publish_all("parent meanwhile", 50)
for _ in joins:
    os.read(ready, 1)
tell(connections=connections())
os.close(go)
tell(codes=[join() for join in joins])
publish_all("parent after", 50)
tell(connections=connections())
"""


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
async def test_parent_and_forked_workers_go_on_publishing(system: System, fork: str, workers: int) -> None:
    async with subscribers(system) as clients:
        told = await run(system, fork + PREFORK.replace("WORKERS", str(workers)))
        assert told == [{"connections": 1 + workers}, {"codes": [0] * workers}, {"connections": 1}]
        parent = {"parent before": 1, "parent meanwhile": 50, "parent after": 50}
        await assert_each_got(clients, {**parent, **{str(number): 50 for number in range(workers)}})


async def test_workers_can_be_forked_while_other_threads_publish(system: System) -> None:
    code = """
publish_all("parent", 1)
stop = threading.Event()
counts = {}
def keep_publishing(name):
    while not stop.is_set():
        publish("numbers", [name, counts.setdefault(name, 0)])
        counts[name] += 1
threads = [threading.Thread(target=keep_publishing, args=[f"thread {number}"]) for number in range(2)]
for thread in threads:
    thread.start()
codes = []
for number in range(8):
    codes.append(start(lambda: publish_all(str(number), 5))())
stop.set()
for thread in threads:
    thread.join()
tell(codes=codes, counts=counts)
"""
    async with subscribers(system) as clients:
        [told] = await run(system, FORKS["fork and os._exit"] + code)
        assert told["codes"] == [0] * 8
        await assert_each_got(clients, {"parent": 1, **told["counts"], **{str(number): 5 for number in range(8)}})


@pytest.mark.parametrize(
    "fork", [FORKS["fork and os._exit"], FORKS["multiprocessing"]], ids=["fork", "multiprocessing"]
)
async def test_child_that_was_forked_on_a_running_loop_publishes(system: System, fork: str) -> None:
    code = """
import asyncio
from realtime import apublish
async def main():
    await apublish("numbers", ["parent", 0])
    join = start(lambda: publish_all("child", 5))
    await apublish("numbers", ["parent", 1])
    tell(code=await asyncio.to_thread(join))
    await apublish("numbers", ["parent", 2])
asyncio.run(main())
"""
    async with subscribers(system) as clients:
        assert await run(system, fork + code) == [{"code": 0}]
        await assert_each_got(clients, {"parent": 3, "child": 5})


async def test_grandchild_outlives_those_it_was_forked_from(system: System) -> None:
    code = """
publish_all("parent", 1)
ended, held = os.pipe()
def child():
    publish_all("child", 1)
    start(grandchild)
def grandchild():
    os.close(held)
    os.read(ended, 1)  # the others have ended
    publish_all("grandchild", 5)
    tell(done=True)
start(child)()
"""
    async with subscribers(system) as clients:
        assert await run(system, FORKS["fork and os._exit"] + code) == [{"done": True}]
        await assert_each_got(clients, {"parent": 1, "child": 1, "grandchild": 5})


async def test_forked_child_closes_connections(system: System) -> None:
    code = """
from realtime import close_connections
def close():
    tell(outcome=close_connections(topic="many-1"))
close()
tell(code=start(close)())
close()
"""
    outcome = {"outcome": [2, 0, 0]}
    assert await run(system, FORKS["fork and sys.exit"] + code) == [outcome, outcome, {"code": 0}, outcome]


async def test_child_that_a_server_forks_closes_connections(system: System) -> None:
    code = """
import asyncio, logging
from realtime import close_connections
from realtime.hub import get_hub
logging.disable(logging.INFO)
async def main():
    hub = get_hub()
    while not hub.link.up:
        await asyncio.sleep(0.01)
    tell(code=await asyncio.to_thread(start(lambda: tell(outcome=close_connections(topic="many-1")))))
    await hub.stop()
asyncio.run(main())
"""
    told = await run(system, FORKS["fork and os._exit"] + code)
    assert told == [{"outcome": [3, 0, 0]}, {"code": 0}]


# Redis frozen


async def test_publish_waits_for_a_redis_that_answers_late(bare: System) -> None:
    code = """
publish("news", 0)
os.kill(PID, signal.SIGSTOP)
began = time.monotonic()
threading.Timer(0.5, os.kill, [PID, signal.SIGCONT]).start()
publish("news", 1)
tell(seconds=time.monotonic() - began)
"""
    [told] = await run(bare, code.replace("PID", str(bare.redis.process.pid)))
    assert 0.5 <= told["seconds"] < 2


async def test_publish_fails_in_time_while_redis_is_frozen_and_works_again_after_it() -> None:
    code = """
def seconds_of_failure(number):
    began = time.monotonic()
    try:
        publish("numbers", ["frozen", number])
    except LayerUnavailable:
        return time.monotonic() - began
publish_all("before", 5)
os.kill(PID, signal.SIGSTOP)
try:
    tell(seconds=seconds_of_failure(0))
    seconds = []
    in_threads(8, lambda number: seconds.append(seconds_of_failure(1 + number)))
    tell(seconds=max(seconds))
finally:
    os.kill(PID, signal.SIGCONT)
publish_all("after", 50)
tell(connections=connections())
"""
    with running_system(*((kind, {}) for kind in SERVERS), heartbeats=False) as system, system.told():
        async with subscribers(system) as clients:
            *failures, last = await run(system, code.replace("PID", str(system.redis.process.pid)))
            assert last == {"connections": 1}
            assert all(1.5 < told["seconds"] < 3.5 for told in failures)
            for client in clients:
                got = await everything_until(client, ["after", 49])
                well = [data for data in got if data is not GAP and data[0] != "frozen"]
                assert well == [["before", number] for number in range(5)] + [["after", number] for number in range(50)]
                # Redis may take one that nobody waited for any more.
                frozen = [data for data in got if data is not GAP and data[0] == "frozen"]
                assert len({number for _, number in frozen}) == len(frozen) < 9
                assert GAP in got[5 : got.index(["after", 0])]
                assert GAP not in got[:5] + got[got.index(["after", 0]) :]


# Scripts


ENDINGS = {
    "once": "publish('news', 0)",
    "in a thread": "in_threads(1, lambda number: publish('news', number))",
    "in a thread that goes on": "threading.Thread(target=lambda: [publish('news', n) for n in range(50)]).start()",
    "beside async code": "import asyncio, realtime; publish('news', 0); asyncio.run(realtime.apublish('news', 1))",
    "at exit": "import atexit; atexit.register(publish, 'news', 0)",
    "and forks": "publish('news', 0); assert os.fork() == 0 or os.wait()[1] == 0",
}


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
async def test_script_that_publishes_ends_at_once(bare: System, code: str) -> None:
    script = bare.script(PRELUDE + code + "\nprint('done', flush=True)\n")
    await asyncio.to_thread(script.wait_for_line, "done")
    began = time.monotonic()
    assert await wait(script) == 0
    assert time.monotonic() - began < 2
    assert set(script.lines) == {"done"}  # and no warning
    assert await asyncio.to_thread(bare.redis.ask, "CLIENT LIST", "TYPE", "pubsub") == []


async def test_script_that_could_not_publish_ends_at_once(bare: System) -> None:
    code = """
publish("news", 0)
os.kill(PID, signal.SIGSTOP)
try:
    publish("news", 1)
except LayerUnavailable:
    print("done", flush=True)
"""
    script = bare.script(PRELUDE + code.replace("PID", str(bare.redis.process.pid)))
    await asyncio.to_thread(script.wait_for_line, "done")
    began = time.monotonic()
    assert await wait(script) == 0
    assert time.monotonic() - began < 2
    assert script.lines == ["done"]


async def test_signal_handler_publishes_on_commit(system: System, tmp_path: Path) -> None:
    code = """
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.signals import post_save
call_command("migrate", "auth", verbosity=0)
def saved(instance, **kwargs):
    publish("numbers", instance.name, on_commit=True)
post_save.connect(saved, sender=Group)
with transaction.atomic():
    Group.objects.create(name="committed")
    publish("numbers", "before the commit")
try:
    with transaction.atomic():
        Group.objects.create(name="rolled back")
        1 / 0
except ZeroDivisionError:
    publish("numbers", "after the rollback")
connection.close()
"""
    async with subscribers(system) as clients:
        assert await run(system, code, DATABASE_URL=f"sqlite:///{tmp_path / 'site.sqlite3'}") == []
        for client in clients:
            assert await client.publications(3) == ["before the commit", "committed", "after the rollback"]
            await client.echo()
