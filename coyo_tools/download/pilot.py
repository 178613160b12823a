"""The pilot: a stratified sample of the urls is fetched first, to forecast what the rest will be.

What it fetched is not fetched again: the download that follows finds it in its journals.
"""

PILOT = "pilot"
