"""The small operations of a training step: few launches on a GPU, few calls elsewhere, no waiting for the device.

    cursor.py      where a training is, kept on the device
    batch.py       a step begins: its rate, its samples
    loss.py        a batch's cross-entropy and its gradient; the step ends
    orthogonal.py  Muon's update of a convolution's kernel
    placement.py   which tensors a Triton kernel takes; for the others each function makes plain calls of torch

Importing them asks no device anything; what data sets need (`batch`) imports no Triton either. Imports nothing else
of mnistfast.
"""
