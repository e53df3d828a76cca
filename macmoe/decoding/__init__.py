"""One new token through a whole model, in few kernels: what generation runs on a GPU after the prompt.

`step` walks the layers; `matrices`, `attention` and `mlp` translate the modules of the families into launches
of macmoe.kernels. Nothing here computes differently from the modules, which stay the definition of every
model and do everything else: prompts, batches, training. What has no translation (adapters, packings that the
kernels cannot read) is left to them.
"""
