"""MNIST-sized CNNs on fused convolution layers: training, evaluation, reports. Importing this imports nothing heavy."""

__version__ = "0.1.0"
