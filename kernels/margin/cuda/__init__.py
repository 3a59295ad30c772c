"""The explicit-negative margin loss in CUDA C++: ``cuda`` on a GPU, ``native`` for the same source on a CPU.

row.h is the mathematics, margin.cu its GPU kernels, margin.cpp its loop over rows on CPU threads; none of them knows
torch. build.py compiles them, library.py passes them tensors, operator.py makes them operators of torch.
"""
