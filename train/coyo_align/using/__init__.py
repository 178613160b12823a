"""What is done with a trained model: embed, classify, score.

Left out: how well it does, which is ``scoring``'s.
"""
