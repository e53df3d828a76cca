"""Fused kernels for decoding, each with the plain MLX operations that it replaces.

Every kernel is one text in the Metal Shading Language, of which `dialect` makes CUDA C++, so what is measured
on one kind of GPU and tested on a CPU (tests/metal) is what runs on the other. Each file has the kernel, a
function that launches it, and a `reference` with the same arguments and results.
"""
