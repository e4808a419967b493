"""The long-lived process that keeps the base model: builds the oracle once and answers requests until it is ended."""

import json
import logging
import os
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm  # comes with transformers and datasets, whose progress bars it draws

from qra_bo.execution.base import NO_RESULT, failure_of, oracle_method
from qra_bo.oracle.protocol import TRAINING, Oracle, Progress, StopRequested, activity
from qra_bo.trials import TrialSpec
from qra_bo.utils import errors
from qra_bo.utils.errors import ConfigError, ContractError, QRABOError, UserError, from_lack_of_memory, is_device_lost
from qra_bo.utils.process import STOPPING, prepare

log = logging.getLogger(__name__)
DEVICE_LOST = 71
"""Exit status of a worker whose GPU context is lost."""
PROGRESS_SECONDS = 0.2
"""Least time between two progress messages of one activity (its last is always sent)."""


def main(connection: int, driver: int) -> None:
    """Entry of a worker process, which imports this module and nothing of the driver's script.

    Signals from the terminal or a scheduler are ignored: the driver handles them and ends this process. When the
    driver dies this process ends, in the middle of a trial too: two workers would share one device on resume. Messages
    are JSON; the first holds the oracle's ``target`` and its keyword arguments, each other one a request.

    Args:
        connection: Descriptor of this side of the connection to the driver.
        driver: Descriptor of the reading end of a pipe that closes when the driver dies.
    """
    prepare()
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # blocked until here: a signal may not end the start
    threading.Thread(target=_end_with_driver, args=(driver,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that is killed would leave behind
    with Connection(connection) as open_connection:
        _work(open_connection)


def _work(connection: Connection) -> None:
    def tell(what: str, done: int, total: int) -> None:
        _send(connection, "progress", {"what": what, "done": done, "total": total})

    try:
        wanted = json.loads(connection.recv_bytes())
        oracle: Oracle = pkgutil.resolve_name(wanted["target"])(**wanted["kwargs"])
        _send(connection, "ready", {})
    except Exception as error:
        _send(connection, "error", error_body(error))
        return
    try:
        while (request := json.loads(connection.recv_bytes()))["op"] != "close":
            # during work the driver sends nothing but a request to end, or dies
            _send(connection, *serve(oracle, request, Reporter(tell, connection.poll)))
    except (EOFError, OSError, StopRequested):
        return  # the driver is gone, or asked for the end: the trial has been kept
    finally:
        oracle.close()


def _end_with_driver(driver: int) -> None:
    os.read(driver, 1)  # nothing is ever written: it returns when the driver's end closes
    os._exit(1)


class Reporter:
    """Progress of a request, given to ``tell`` at most every ``PROGRESS_SECONDS``; ``stopped`` ends a trial.

    Attributes:
        done: Optimiser steps of the trial so far.
    """

    def __init__(self, tell: Progress, stopped: Callable[[], bool]) -> None:
        self._tell, self._stopped, self.done, self._last = tell, stopped, 0, float("-inf")

    def __call__(self, what: str, done: int, total: int) -> None:
        if activity(what) == TRAINING:
            self.done = done
        if self._stopped():
            raise StopRequested
        now = time.monotonic()
        if done >= total or now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._tell(what, done, total)


def serve(oracle: Oracle, request: Mapping[str, Any], reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """Return the answer to one request: its kind, ``"result"`` or ``"error"``, and its body, JSON values.

    A trial that fails is a result without a loss. Errors that end the run (``NO_RESULT``) and every failure of another
    request are error bodies. The process ends with status ``DEVICE_LOST`` if its GPU context is lost.

    Args:
        oracle: The one oracle of this process.
        request: ``op`` and its arguments: ``spec`` of an ``"evaluate"``, ``method`` and ``kwargs`` of a ``"call"``.
        reporter: Takes progress.
    """
    start = time.monotonic()
    try:
        if request["op"] == "call":
            return "result", dict(oracle_method(oracle, request["method"])(**request["kwargs"], progress=reporter))
        return "result", oracle.evaluate(TrialSpec.from_json(request["spec"]), reporter).to_json()
    except Exception as error:
        if is_device_lost(error):  # all further work of this process would fail: another one takes over
            log.critical("this worker ends, for its GPU context is lost: %s", str(error).splitlines()[0])
            os._exit(DEVICE_LOST)
        if request["op"] == "evaluate" and not isinstance(error, NO_RESULT):
            return "result", failure_of(error, reporter.done, time.monotonic() - start).to_json()
        return "error", error_body(error)


def error_body(error: BaseException) -> dict[str, Any]:
    """Return an error that is being handled as the body of a message; ``problems`` is ``None`` unless a
    ``ConfigError`` lists some. Where memory ran out it is a ``DeviceError``: no bug."""
    told = from_lack_of_memory(error) or error
    return {"type": type(told).__name__, "message": str(told), "trace": traceback.format_exc(),
            "problems": list(error.problems) if isinstance(error, ConfigError) else None}


def error_from_body(body: Mapping[str, Any]) -> QRABOError:
    """Return another process's error as this one would have raised it; a foreign one is a ``ContractError``."""
    if body["problems"] is not None:
        return ConfigError(body["problems"])
    kind = getattr(errors, body["type"], None)
    if isinstance(kind, type) and issubclass(kind, UserError):
        error: QRABOError = kind.__new__(kind)
        error.args = (body["message"],)
        return error
    return ContractError(f"{body['type']}: {body['message']}\n{body['trace']}")


def _send(connection: Connection, kind: str, body: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps({"kind": kind, "body": body}).encode())
