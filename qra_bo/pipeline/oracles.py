"""The oracle of a configuration, made in the process that runs its trials."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from qra_bo.config import config_from_dict, make_space, make_spec
from qra_bo.config.groups import OwnOracleConfig, SyntheticOracleConfig
from qra_bo.oracle.protocol import Oracle
from qra_bo.utils.device import expand_segments


def make_oracle(config: Mapping[str, Any], out: str, threads: int | None = None, room: int | None = None) -> Oracle:
    """Return the oracle of ``RunConfig.to_dict()`` with checkpoints below ``out``; called in the worker process.

    It trains with ``threads`` threads (``None`` leaves their number to torch), and of a GPU it may use ``room`` bytes
    (``None``: all).
    """
    cfg, checkpoints = config_from_dict(config), Path(out) / "checkpoints"
    if cfg.oracle.trains:
        expand_segments()
        import torch  # a simulation does without it; it reads the allocator's settings now

        from qra_bo.pipeline.finetune_oracle import make_finetune  # loads torch
        if threads is not None:
            torch.set_num_threads(threads)
        return make_finetune(cfg, Path(out), room)
    space = make_space(cfg, make_spec(cfg))
    if isinstance(cfg.oracle, OwnOracleConfig):
        from qra_bo.searchers.base import make_own  # loads Hydra, half a second that other oracles do without
        return cast(Oracle, make_own("oracle", cfg.oracle.target, ("describe", "profile", "evaluate", "close"),
                                     config=cfg, space=space, folder=Path(out)))
    assert isinstance(cfg.oracle, SyntheticOracleConfig)
    from qra_bo.oracle.synthetic import SyntheticOracle  # loads scipy, which planning memory does without
    return SyntheticOracle(space, seed=cfg.seed, learning_rate=cfg.adapter.lr, noise=cfg.oracle.noise,
                           high_steps=cfg.fidelity.high, tokens_per_step=cfg.train.step_tokens,
                           eval_tokens=cfg.eval.sequences * cfg.train.length, test_times=cfg.eval.test_times,
                           calibration_tokens=cfg.data.calibration * cfg.train.length, checkpoints=checkpoints)
