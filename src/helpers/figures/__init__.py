"""The one visual language of the book: a colour and a marker for each model, and every kind of figure.

Functions take tidy tables (:mod:`helpers.benchmarks`, :mod:`helpers.softening`) and return a figure; they touch no global
plotting state. ``models`` says which models are drawn, in which order: by default all, in that of the catalogue. Failed rows are left out.
A ValueError says what is wrong with a table: nothing to draw, a missing column, a value that is not finite, a row given twice.
:func:`show` gives a figure its alternative text and its caption. The paper's values are open markers in the colour of their model.
"""

from __future__ import annotations

from helpers.figures.against_dft import force_parity, hero, parity
from helpers.figures.alloys import by_composition, continuous_composition, phase_diagram
from helpers.figures.animation import AnimationView, animation_view
from helpers.figures.card import families
from helpers.figures.distributions import error_distribution, force_histogram, mae_cmae, scale_distribution
from helpers.figures.experiment import arms, restoring_force, seed_curves, seed_parity
from helpers.figures.interactive import StructureView, interactive_parity, structure_view
from helpers.figures.lanes import by_material, label_choices
from helpers.figures.learning import descent, error_curves, kind_matrix, pareto
from helpers.figures.page import Shown, ShownTable, caption, show, show_table, summary, with_interval
from helpers.figures.paths import energy_profiles
from helpers.figures.slopes import clouds, diets, parts, predicted_scales, ratio_by_size, slope_plane
from helpers.figures.slopes import pairs as model_pairs
from helpers.figures.steps import stepwise
from helpers.figures.style import STYLE, apply_style, base_key, colour, in_order, label, mark, marker, paper_points
from helpers.figures.training import training_curve
from helpers.figures.trends import error_against_coordination, scale_against_temperature
from helpers.figures.vibrations import bands, conductivity
