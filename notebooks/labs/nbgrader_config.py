"""Settings of nbgrader for the course labs; nbgrader reads this file when it is started in this folder.

    nbgrader generate_assignment lab1     writes the students' version of a lab to release/
    nbgrader autograde lab1               grades what lies in submitted/<student>/lab1/
    nbgrader generate_feedback lab1       writes a page per student to feedback/
"""

from pathlib import Path

c = get_config()  # noqa: F821  (defined by whoever reads this file)

c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.CourseDirectory.course_id = "soft-potentials"

# A gap shows where to write; running it unfilled says so and does not stop the rest.
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"

# Seconds per cell, for a slow machine with two cores.
c.ExecutePreprocessor.timeout = 600

# A warning is no mistake: nbgrader would take all points of a cell that writes to the standard error.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "."

# Feedback is written anew after the words have been marked.
c.GenerateFeedback.force = True
