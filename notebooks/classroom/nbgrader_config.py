"""nbgrader's settings for a course that is made of these sheets; copy this file into the course's folder."""

c = get_config()  # noqa: F821, nbgrader defines it
c.CourseDirectory.course_id = "fedreft"
c.ClearSolutions.code_stub = {"python": "return ..."}  # what a task returns until a student has done it
c.ExecutePreprocessor.timeout = 120  # seconds for a cell; the first one imports torch
