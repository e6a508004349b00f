"""Without a GPU the Triton kernels are interpreted, which Triton decides once, when a process first imports it: hence
here."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["CONVPOOL_CACHE"] = "off"
