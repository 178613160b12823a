"""Fetching: the opener through which img2dataset asks the web, with its manners and its limits.

`opener.GuardedOpener` is installed in place of urllib's. It decides of every single request whether
it may be made, how long and how large it may get, and what became of it. `run` has img2dataset work
on batches of urls, `worker` is what its processes do, `journal` what they leave. Planning and
judging are left to the download.
"""

from coyo_tools.fetching.blocklist import read_blocklist
from coyo_tools.fetching.opener import GuardedOpener
from coyo_tools.fetching.policy import EVERY_NETWORK, FetchPolicy, Visit

__all__ = ["EVERY_NETWORK", "FetchPolicy", "GuardedOpener", "Visit", "read_blocklist"]
