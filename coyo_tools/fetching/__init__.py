"""Fetching: the opener through which img2dataset asks the web, with its manners and its limits.

`opener.GuardedOpener` is installed in place of urllib's. It decides of every single request whether
it may be made, how long and how large it may get, and what became of it. Retrying, decoding and
keeping ledgers are left to its callers.
"""

from coyo_tools.fetching.blocklist import read_blocklist
from coyo_tools.fetching.opener import GuardedOpener
from coyo_tools.fetching.policy import EVERY_NETWORK, FetchPolicy, Visit

__all__ = ["EVERY_NETWORK", "FetchPolicy", "GuardedOpener", "Visit", "read_blocklist"]
