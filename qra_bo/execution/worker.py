"""The long-lived process that keeps the base model: builds the oracle once and answers requests until told to end."""

import importlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

from qra_bo.execution.messages import (
    error_to_json,
    failure_of,
    is_result,
    oracle_method,
    result_to_json,
    run_profile,
    spec_from_json,
)
from qra_bo.oracle.protocol import TRAINING, Oracle, StopRequested
from qra_bo.utils.errors import ConfigError, is_device_lost

log = logging.getLogger(__name__)
DEVICE_LOST = 71
"""Exit status of a worker whose GPU can't be used by it any more."""
PROGRESS_SECONDS = 0.2
"""Least time between two progress messages of one activity (its last is always sent)."""


def worker_main(connection: Connection, target: str, kwargs: str) -> None:
    """Entry of the spawned process.

    Signals from the terminal or a scheduler are the driver's business: it ends this process. A driver that died
    takes this process with it, in the middle of an evaluation too: two workers would share one device on resume.

    Args:
        connection: To the driver; messages are JSON.
        target: ``"package.module:callable"`` that builds the oracle.
        kwargs: Its keyword arguments, as JSON.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        oracle: Oracle = resolve(target)(**json.loads(kwargs))
        _send(connection, "ready", {"oracle": oracle.kind})
    except Exception as error:
        _send(connection, "error", error_body(error))
        return
    try:
        while _answer(connection, oracle):
            pass
    except StopRequested:
        return  # what was being evaluated has been kept
    finally:
        oracle.close()


def resolve(target: str) -> Callable[..., Any]:
    """The callable that ``"package.module:name"`` names.

    Raises:
        ConfigError: If there is no such module or name.
    """
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the oracle must be given as 'package.module:callable'; {target!r} can't be imported "
                          f"({error})") from error
    if not callable(found):
        raise ConfigError(f"the oracle must be given as 'package.module:callable'; {target!r} is not callable")
    result: Callable[..., Any] = found
    return result


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(connection: Connection, oracle: Oracle) -> bool:
    """Serve one request; whether there may be another."""
    try:
        request = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return False
    if request["op"] == "close":
        return False
    _send(connection, *serve(oracle, request, _Reporter(connection)))
    return True


class Reporter(Protocol):
    """Progress that remembers how far an evaluation got."""

    @property
    def done(self) -> int: ...

    def __call__(self, what: str, done: int, total: int) -> None: ...


def serve(oracle: Oracle, request: Mapping[str, Any], reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """The answer to one request: its kind, ``"result"`` or ``"error"``, and its body, JSON values."""
    start = time.monotonic()
    try:
        if request["op"] == "describe":
            return "result", dict(oracle.describe())
        if request["op"] == "profile":
            return "result", run_profile(oracle, reporter).to_json()
        if request["op"] == "call":
            return "result", dict(oracle_method(oracle, request["method"])(**request["kwargs"], progress=reporter))
        measurement = oracle.evaluate(spec_from_json(request["request"]), reporter)
        return "result", result_to_json(measurement)
    except Exception as error:
        if is_device_lost(error):  # whatever this process tried afterwards would fail too: another one must take over
            log.critical("this worker ends, for its GPU context is lost: %s", str(error).splitlines()[0])
            os._exit(DEVICE_LOST)
        if request["op"] == "evaluate" and is_result(error):
            return "result", result_to_json(failure_of(error, reporter.done, time.monotonic() - start))
        return "error", error_body(error)


def error_body(error: Exception) -> dict[str, Any]:
    """What tells the driver of an error."""
    return {**error_to_json(error), "trace": traceback.format_exc()}


class _Reporter:
    """Sends progress to the driver, not more often than a person or a deadline needs, and stops when it says so."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = float("-inf")
        self.done = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == TRAINING:
            self.done = done
        if self._connection.poll():  # while work goes on the driver says nothing but that it is to end, or dies
            raise StopRequested
        now = time.monotonic()
        if done >= total or now - self._last >= PROGRESS_SECONDS:
            self._last = now
            _send(self._connection, "progress", {"what": what, "done": done, "total": total})


def _send(connection: Connection, kind: str, body: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps({"kind": kind, "body": body}).encode())
