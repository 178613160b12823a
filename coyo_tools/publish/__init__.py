"""Publish: a subset's dataset card and Croissant metadata, and its way to the Hugging Face hub."""

from coyo_tools.publish.facts import Card, CardSettings, read_card
from coyo_tools.publish.push import PushResult, push_subset
from coyo_tools.publish.write import WrittenCard, write_card

__all__ = [
    "Card",
    "CardSettings",
    "PushResult",
    "WrittenCard",
    "push_subset",
    "read_card",
    "write_card",
]
