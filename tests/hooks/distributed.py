"""Real processes of one gloo group, forked from a server that has torch loaded already: a test takes about a second."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, get_context
from typing import Any

import torch
import torch.distributed as dist

DEADLINE_SECONDS = 120.0
COLLECTIVE_SECONDS = 60.0  # gloo does not always notice a peer's death: then this ends the wait, before the test's end
DIED = "died"
"""In the place of a result: the process ended without one."""

_PRELOADED = ["torch._dynamo", "torch.distributed.checkpoint", "tests.hooks.sharded", "hypothesis"]


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any, store: str = "tcp") -> list[Any]:
    """What `function(rank, *args)` returned on each rank. Rank 0 serves the store, if it is not a file's path.

    Raises: AssertionError: it raised on one of them; with that rank's traceback.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ports = context.SimpleQueue()
    over = context.Event()
    processes, pipes = [], []
    for rank in range(world_size):
        here, there = context.Pipe(duplex=False)
        work = (function, args, rank, world_size, store)
        process = context.Process(target=_run, args=(work, ports, over, there), daemon=True)
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    try:
        return [_result(rank, pipe) for rank, pipe in enumerate(pipes)]
    finally:
        over.set()
        for process in processes:
            process.join(10.0)
            process.kill()


def _result(rank: int, pipe: connection.Connection) -> Any:
    if not pipe.poll(DEADLINE_SECONDS):
        raise AssertionError(f"rank {rank} did not come to an end")
    try:
        value, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return DIED
    assert not error, f"rank {rank}: {error}"
    return value


def _run(work: tuple[Any, ...], ports: Any, over: Any, pipe: connection.Connection) -> None:
    function, args, rank, world_size, where = work
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        store = _store(where, rank, world_size, ports)
        timeout = timedelta(seconds=COLLECTIVE_SECONDS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        answer = (function(rank, *args), "")
    except BaseException:
        answer = (None, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
    over.wait(DEADLINE_SECONDS)  # who serves the store stays until all are done
    os._exit(0)


def _store(where: str, rank: int, world_size: int, ports: Any) -> Any:
    if where != "tcp":
        return dist.FileStore(where, world_size)
    if rank == 0:
        served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for _ in range(1, world_size):
            ports.put(served.port)
        return served
    return dist.TCPStore("127.0.0.1", ports.get(), is_master=False, wait_for_workers=False)
