"""What `macmoe bench` measures: speed, memory and kernels of a model, alone or beside mlx-lm.

`weights` draws models of published shapes, `peer` gives their arrays to mlx-lm, `sides` runs either,
`counting` and `traffic` say what a token costs in kernels and bytes, `measure` takes times, `run` does all,
`machine` describes where.
"""
