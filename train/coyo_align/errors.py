"""The one exception of this package, so that a caller can tell a mendable input from a defect.

Anything else that is raised is a surprise and keeps its traceback.
"""


class AlignError(ValueError):
    """The input or the settings can't be trained on or evaluated; the message says what to try."""
