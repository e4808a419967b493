"""Rows of the table: one method each, which finds the configuration that is trained."""

from dataclasses import dataclass

from bench.table1.limits import Limit
from bench.table1.recipe import Recipe, codes_name, embeddings_name
from bench.table1.session import Session
from qra_bo.config import RunConfig
from qra_bo.memory.formats import parse_format
from qra_bo.space import uniform
from qra_bo.study.baselines import largest_rank
from qra_bo.study.cost import FORWARD_SHARE
from qra_bo.study.setting import BaselineRules

RANK = 16
"""Rank of the published comparison."""


@dataclass(frozen=True, slots=True)
class Found:
    """A method's choice.

    Args:
        recipe: Configuration that is trained.
        cost: Training tokens spent on finding it, as if the method had run alone.
        note: Note for readers of the row.
    """

    recipe: Recipe
    cost: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One method. The defaults are those of methods that need a budget and find their configuration without training.

    Args:
        name: Name in the registry.
        title: Title in tables.
        key: Whether it gets ``table1.key_seeds`` training seeds instead of ``table1.seeds``.
        lr_centre: Factor on the rule's learning rate at the centre of the tried rates.
    """

    name: str
    title: str
    key: bool = False
    lr_centre: float = 1.0

    def takes(self, limit: Limit | None) -> bool:
        """Whether the method applies to a limit; ``None`` stands for no limit at all."""
        return limit is not None and limit.budget is not None

    def differs(self, config: RunConfig) -> bool:
        """Whether the method is another one than a row without its own settings, in a table of this configuration."""
        return True

    def signature(self, session: Session) -> str:
        """Return the settings that decide the result of ``find``."""
        return ""

    def equivalents(self, session: Session, limit: Limit) -> float:
        """Return the rough full-trial equivalents of ``find``."""
        return 0.0

    def find(self, session: Session, limit: Limit) -> Found:
        """Find the configuration that is trained within ``limit``.

        Raises:
            UserError: If the method has none within it.
        """
        raise NotImplementedError


def largest_fitting_rank(session: Session, limit: Limit, fmt: str, most: int) -> int:
    """Return the largest rank of at most ``most`` with which ``fmt`` everywhere is within ``limit``; 0 if none is."""
    setting = session.setting_of(limit)
    space = setting.space
    if limit.max_average_bits is not None and parse_format(fmt).bits > limit.max_average_bits:
        return 0
    most = min(most, *(min(m.out_features, m.in_features) for u in space.units for m in u.linears))
    rules = BaselineRules(space.n_units, (fmt,), most, session.budget_bytes(limit),
                        lambda a: Recipe(a, "kaiming").predicted_bytes(setting.memory, space))
    return largest_rank(rules, fmt)


@dataclass(frozen=True)
class WithCodes(Row):
    """A method with a choice of codes.

    Args:
        gptq: Whether codes are GPTQ's; else round-to-nearest.
    """

    gptq: bool = False

    def tokens(self, session: Session) -> int | None:
        """Return the calibration tokens, as in ``Recipe``."""
        return session.gptq_tokens if self.gptq else None


@dataclass(frozen=True)
class Uniform(WithCodes):
    """One format and rank everywhere, without a limit.

    Args:
        fmt: The format.
        embeddings: Bits of the embedding and the head; ``None`` for those of the table.
    """

    fmt: str = "nf4"
    embeddings: int | None = None

    def differs(self, config: RunConfig) -> bool:
        return self.embeddings != config.embedding_bits

    def takes(self, limit: Limit | None) -> bool:
        return limit is None

    def signature(self, session: Session) -> str:
        return f"{self.format_in(session)}{codes_name(self.tokens(session))}{embeddings_name(self.embeddings)}"

    def find(self, session: Session, limit: Limit) -> Found:
        tokens = self.tokens(session)
        allocation = uniform(session.space.n_units, self.format_in(session), RANK)
        recipe = Recipe(allocation, "kaiming", gptq_tokens=tokens, embeddings=self.embeddings)
        return Found(recipe, FORWARD_SHARE * (tokens or 0))

    def format_in(self, session: Session) -> str:
        """Return the configured format of these bits; those of QLoRA and 16 bits are fixed."""
        bits = parse_format(self.fmt).bits
        configured = session.config.quantizer.formats.get(bits, ())
        return self.fmt if bits in (4, 16) or not configured else configured[0]


FIXED: tuple[Row, ...] = (
    Uniform("lora_16", "LoRA, 16-bit base", key=True, fmt="fp16"),
    Uniform("qlora", "QLoRA, 4-bit", key=True),
    Uniform("qlora_published", "QLoRA, 4-bit, embedding in 16 bits as published", embeddings=16),
    Uniform("qlora_gptq", "QLoRA, 4-bit, codes by GPTQ", gptq=True),
    Uniform("uniform_2", "Uniform 2-bit", fmt="int2-g64"),
    Uniform("uniform_3", "Uniform 3-bit", fmt="int3-g64"),
    Uniform("uniform_8", "Uniform 8-bit", fmt="int8"))
