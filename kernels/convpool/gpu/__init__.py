"""The backend `triton`: kernels for GPUs (and, with TRITON_INTERPRET=1, for their tests on CPUs). Importing it imports
no Triton."""
