"""Fitting potentials to labels: fine-tuning, the labels and their checks, weak supervision, linear potentials, alchemical atoms."""
