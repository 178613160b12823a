"""Fine-tune ALIGN on WebDataset shards, and score it: shards in, Hugging Face checkpoint out.

Usable without coyo_tools, which it never imports. Nothing heavy is imported here: ``config`` and
``errors`` are cheap, the other modules bring torch and transformers.

What Hugging Face's ALIGN gets wrong for whoever trains it, and how each is answered, is told where
the answer stands: ``model`` (embeddings, frozen parts, temperature, BatchNorm), ``loss``, ``optim``
(weight decay), ``tokenizer``, ``images`` (preprocessing), ``checkpoint`` (loading and saving).

This package leaves out everything about where the pictures come from.
"""
