"""One new token of a few sequences through a whole model, in few kernels: what a GPU runs after the prompt.

`step` walks the layers; `matrices`, `attention` and `mlp` translate the modules of the families into launches
of macmoe.kernels. Nothing here computes differently from the modules, which stay the definition of every
model and do everything else: prompts, large batches, training. What has no translation (adapters, packings
that the kernels cannot read) is left to them.
"""
