"""Speed: fused operations, kernels (numba, Triton), CUDA graphs, threads, devices, ranks."""
