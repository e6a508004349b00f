"""First weights that depend on the training images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGES = 400  # whose patches tell the principal components: more changes neither them nor the accuracy
_STEP = 3  # pixels between neighbouring patches, which are nearly alike
_LEAST_DEVIATION = 0.1  # of a patch's pixels, in normalised units: below it is background
_NORM = 0.5  # of each filter: about what torch draws for a 5x5 kernel over one channel


@torch.no_grad()
def start_from_patches(model: nn.Module, images: Tensor) -> None:
    """Makes the first convolution of `model` a fixed basis of what images look like, and its last layer zero.

    The filters are the leading principal components of the patches, centred, each with both signs, since a ReLU lets
    one sign through; filters beyond twice the number of components keep their drawn weights. They are never learnt, so
    that no gradient is computed for them, nor for what goes into the second layer.

    Args:
        model: its first convolution has a bias, or a norm behind it, and one group.
        images: float32 (N, C, H, W), normalised, of the size that `model` takes.
    """
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    first, last = convs[0], [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    height, width = first.kernel_size
    patches = images.unfold(2, height, _STEP).unfold(3, width, _STEP).permute(0, 2, 3, 1, 4, 5)
    patches = patches.flatten(0, 2).flatten(1)  # [patch, C * height * width]
    patches = patches[patches.std(1) > _LEAST_DEVIATION]
    mean = patches.mean(0)
    _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))  # columns, the leading one last
    count = min(first.out_channels // 2, vectors.shape[1])
    leading = vectors.flip(1)[:, :count].T * _NORM
    filters = torch.cat([leading, -leading])
    first.weight[: 2 * count] = filters.view(-1, *first.weight.shape[1:])
    if first.bias is not None:
        first.bias[: 2 * count] = -filters @ mean
    first.requires_grad_(False)
    for parameter in last.parameters():
        parameter.zero_()
