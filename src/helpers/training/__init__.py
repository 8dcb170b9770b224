"""Fitting potentials to labels: fine-tuning, the labels and their checks, linear potentials, alchemical atoms."""
