"""A small vision transformer for 32 x 32 images, built from torchvision's VisionTransformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021, arXiv 2010.11929,
much smaller: 64 patches of 4 x 4 and a class token, six layers with an embedding dimension of 128, four heads. 58.0 M MACs,
811,146 parameters.
"""

from torchvision.models import VisionTransformer


def vit(num_classes: int = 10) -> VisionTransformer:
    """[n, 3, 32, 32] -> logits [n, num_classes]."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=256, num_classes=num_classes
    )
