"""Fused kernels for decoding.

Every kernel is one text in the Metal Shading Language, of which `dialect` makes CUDA C++, so what is measured
on one kind of GPU and tested on a CPU (tests/metal) is what runs on the other. Each file has kernels and the
functions that launch them; what a kernel has to give, in plain operations, is in macmoe.decoding.references.
"""
