"""Curate COYO-700M: query, filter, deduplicate, download, train, compare.

Nothing is imported here, so that ``coyo --help`` answers at once; import the module you need,
for example ``from coyo_tools.filter import filter_pool``.
"""

__version__ = "0.1.0"
