"""PES softening in universal machine-learning interatomic potentials: the library behind the book."""

# Here, since asking for their names should import nothing.
EXPERIMENTS = (
    "fine_tuning",
    "mending",
    "curvature_mending",
    "students",
    "valley_floor",
    "learning_curve",
    "alchemy",
    "coverage",
    "tournament",
    "universal",
)

BENCHMARKS = (
    "surfaces",
    "defects",
    "solid_solutions",
    "phonons",
    "elasticity",
    "strained_cells",
    "migration",
    "off_equilibrium",
    "dynamics",
    *EXPERIMENTS,
)

# Signs on the names of what is compared across two kinds of DFT, with the note that a page puts below (figures.style.noted).
OTHER_FUNCTIONAL, OTHER_LABELS = "†", "‡"
NOTES = {
    OTHER_FUNCTIONAL: "The DFT has another functional than the training data (PBE).",
    OTHER_LABELS: "Learned from PBE with newer pseudopotentials than those of the reference.",
}
