"""The oracle with a planted optimum, for any model's shapes (``oracle=synthetic``)."""

from qra_bo.oracle.synthetic.landscape import Landscape
from qra_bo.oracle.synthetic.oracle import SyntheticOracle

__all__ = ["Landscape", "SyntheticOracle"]
