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
