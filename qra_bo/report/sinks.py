"""The trackers themselves, each behind the same three calls; their packages are extras."""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from qra_bo.utils.errors import MissingExtraError
from qra_bo.utils.registry import Registry


class Sink(Protocol):
    """Where metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""

    def close(self) -> None:
        """Write out what is held back."""


Opener = Callable[[Mapping[str, Any]], Sink]
"""Begins a run of a tracker with its parameters."""
SINKS: Registry[Callable[[Path, str, str | None], Opener]] = Registry("logger")
"""By name: from the run's folder, the project and ``where`` to an opener. Looking one up imports nothing."""


def run_id(folder: Path) -> str:
    """The same for the same folder, so that a run which goes on stays one run of its tracker."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


class _Tensorboard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@SINKS.register("tensorboard")
def tensorboard(folder: Path, project: str, where: str | None) -> Opener:
    """Event files in ``where``, or in ``tensorboard`` below the run's folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "logger=tensorboard") from error
    target = folder / "tensorboard" if where is None else Path(where) / project / folder.name

    def begin(parameters: Mapping[str, Any]) -> Sink:
        writer = SummaryWriter(str(target))
        writer.add_text("parameters", "\n".join(f"- {k}: {v}" for k, v in parameters.items()))
        return _Tensorboard(writer)

    return begin


class _Mlflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


@SINKS.register("mlflow")
def mlflow(folder: Path, project: str, where: str | None) -> Opener:
    """The tracking server or folder ``where``, or ``mlruns`` below the run's folder."""
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("mlflow-skinny", "mlflow", "logger=mlflow") from error
    uri = (folder / "mlruns").resolve().as_uri() if where is None else where

    def begin(parameters: Mapping[str, Any]) -> Sink:
        client, tag = MlflowClient(tracking_uri=uri), run_id(folder)
        found = client.get_experiment_by_name(project)
        experiment = client.create_experiment(project) if found is None else found.experiment_id
        same = client.search_runs([experiment], f"tags.qra_bo_run = '{tag}'")
        if same:
            return _Mlflow(client, same[0].info.run_id)
        run = client.create_run(experiment, tags={"qra_bo_run": tag}, run_name=folder.name).info.run_id
        for name, value in parameters.items():
            client.log_param(run, name, value)
        return _Mlflow(client, run)

    return begin


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


@SINKS.register("wandb")
def wandb(folder: Path, project: str, where: str | None) -> Opener:
    """Offline files in ``where`` or below the run's folder, which ``wandb sync`` uploads, unless WANDB_MODE is set."""
    try:
        import wandb as package
    except ImportError as error:
        raise MissingExtraError("wandb", "wandb", "logger=wandb") from error

    def begin(parameters: Mapping[str, Any]) -> Sink:
        return _Wandb(package.init(project=project, name=folder.name, id=run_id(folder), resume="allow",
                                   dir=str(folder if where is None else where), config=dict(parameters),
                                   mode=os.environ.get("WANDB_MODE", "offline"),
                                   settings=package.Settings(console="off", silent=True)))

    return begin


class _Trackio(_Wandb):
    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            super().close()


@SINKS.register("trackio")
def trackio(folder: Path, project: str, where: str | None) -> Opener:
    """A database in ``where`` or in ``trackio`` below the run's folder; ``trackio show`` opens it."""
    os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio" if where is None else Path(where)).resolve()))
    try:
        import trackio as package
    except ImportError as error:
        raise MissingExtraError("trackio", "trackio", "logger=trackio") from error

    def begin(parameters: Mapping[str, Any]) -> Sink:
        with redirect_stdout(sys.stderr):  # it greets on stdout, which holds results alone
            return _Trackio(package.init(project=project, name=folder.name, resume="allow", config=dict(parameters)))

    return begin
