"""How good a model is: retrieval, zero-shot classification and nearest neighbours, with intervals.

Read ``evaluate`` first; the rules of what counts as right are told there.
"""
