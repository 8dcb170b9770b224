"""PES softening in universal machine-learning interatomic potentials: the library behind the book."""
