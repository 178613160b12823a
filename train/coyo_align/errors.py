"""The one exception of this package, so that a caller can tell a mendable input from a defect.

Anything else that is raised is a surprise and keeps its traceback.
"""

import errno

# What a write says when there is no room: the disk's, a quota's, a limit on the size of a file.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AlignError(ValueError):
    """The input or the settings can't be trained on or evaluated; the message says what to try."""
