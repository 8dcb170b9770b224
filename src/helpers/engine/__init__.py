"""Moving atoms and cells to where the forces vanish.

Single-point calculations of many structures are :meth:`helpers.potentials.base.Potential.evaluate`. Here :func:`relax` relaxes many
structures in batches, :func:`relax_symmetric` one crystal within its symmetry, :func:`neb` the path from one minimum to another, and
:func:`move` lets them move as temperature makes them.
"""

from helpers.engine.batched import CELL_MODES, NO_STRESS, Relaxed, evaluate_distinct, relax, relax_distinct
from helpers.engine.dynamics import Snapshot, move
from helpers.engine.paths import check_path, neb
from helpers.engine.symmetric import relax_symmetric

__all__ = [
    "CELL_MODES",
    "NO_STRESS",
    "Relaxed",
    "Snapshot",
    "check_path",
    "evaluate_distinct",
    "move",
    "neb",
    "relax",
    "relax_distinct",
    "relax_symmetric",
]
