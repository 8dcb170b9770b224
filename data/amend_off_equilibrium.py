"""Give the committed tables of off_equilibrium the virials and volumes that tables now have, from their own forces.

Needs the DFT frames (``softening fetch off_equilibrium``, or the folder that SOFTENING_MIRROR names), but no model. A table that has
them stays as it is. Fingerprint, packages and date of the provenance are those of the run that computed the forces; ``amended`` says
what came later.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers import registry, results
from helpers.benchmarks import COLUMNS, Case
from helpers.benchmarks import off_equilibrium as off
from helpers.potentials.base import Prediction


def amended(table: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """Return a model's table with the virials and volumes that its own forces and these cases give; doing so again changes nothing."""
    forces = table[(table["property"] == "force") & (table["status"] == "ok")].sort_values(["case", "atom", "component"])
    by_case = {name: part["value"].to_numpy(dtype=float).reshape(-1, 3) for name, part in forces.groupby("case", observed=True)}
    known = [case for case in cases if case.name in by_case]
    virials = [part for k, case in enumerate(known) for part in off.virial(k, case, Prediction(np.nan, by_case[case.name]))]
    volumes = {case.name: case.info["volume_a3_per_atom"] for case in cases}
    old = table[table["property"] != "virial"]
    old = old.assign(volume_a3_per_atom=old["case"].astype(str).map(volumes).astype(np.float32))
    both = pd.concat([old.astype({"property": str, "unit": str}), off.tidy(str(table["model"].iloc[0]), known, virials)], ignore_index=True)
    order = [*COLUMNS, *off.INFO, "atom", "component"]
    return both.astype(dict.fromkeys(["model", "property", "unit", "status", "component"], "category"))[order]


def main() -> None:
    """Amend the tables of all models."""
    cases = off.cases(sets=[name for name in off.SETS if name != "wbm-full" or registry.available(off.SETS[name])])
    for key in results.models("off_equilibrium"):
        old, made = results.read("off_equilibrium", key), results.provenance("off_equilibrium", key)
        new = amended(old, cases)
        if "volume_a3_per_atom" not in old or len(new) != len(old):
            made["amended"] = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "added": "virial, volume_a3_per_atom"}
            made |= {"rows": len(new), "failed_rows": int((new["status"] == "failed").sum())}
            results.write("off_equilibrium", key, new, made)
        print(f"{key}: {len(new) - len(old)} rows added")


if __name__ == "__main__":
    main()
