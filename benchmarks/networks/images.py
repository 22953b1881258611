"""Networks of images and volumes, as packages ship them."""

import importlib
import importlib.util

import torch
import torch.nn.functional as F

from benchmarks.networks.case import OTHER, SPATIAL, Call, Inside, network


def import_torchvision():
    """Import torchvision, which timm asks for, also where its operators do not load.

    Its wheels on PyPI are built for CUDA. Beside a torch without, their Python describes operators that nobody has
    defined, and that no classifier calls.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


if importlib.util.find_spec("torchvision"):
    import_torchvision()


@network(
    "timm ConvNeXt",
    OTHER,
    package="timm",
    small=dict(name="convnext_atto", batch=2, side=32),
    larger=dict(name="convnext_atto", batch=8, side=128),
)
# Batch normalization of two numbers, as of two images of 32x32, amplifies rounding by ten orders of magnitude.
@network(
    "timm EfficientNet",
    OTHER,
    package="timm",
    small=dict(name="efficientnet_b0", batch=4, side=64),
    larger=dict(name="efficientnet_b0", batch=8, side=128),
)
@network(
    "timm ResNetV2",
    SPATIAL,
    package="timm",
    tolerance=0.02,  # of ReLUs, see PreActResNet-18
    small=dict(name="resnetv2_18", batch=4, side=64),
    larger=dict(name="resnetv2_18", batch=8, side=128),
)
@network(
    "timm ViT",
    OTHER,
    package="timm",
    small=dict(name="vit_tiny_patch16_224", batch=2, side=32, img_size=32),
    larger=dict(name="vit_tiny_patch16_224", batch=8, side=128, img_size=128),
)
@network(
    "timm Swin",
    OTHER,
    package="timm",
    small=dict(name="swin_tiny_patch4_window7_224", batch=1, side=32, img_size=32),
    larger=dict(name="swin_tiny_patch4_window7_224", batch=4, side=128, img_size=128),
)
def timm_classifier(name, batch, side, **options):
    import timm

    classifier = timm.create_model(name, num_classes=10, **options)
    images, labels = torch.rand(batch, 3, side, side), torch.randint(10, (batch,))

    def log_density(logits):
        return -F.cross_entropy(logits, labels, reduction="none")

    def loss(logits, score):  # double backpropagation, Drucker and LeCun, 1992
        return F.cross_entropy(logits, labels) + 10 * score.square().sum((1, 2, 3)).mean()

    return Call(classifier, images, loss, log_density=log_density)


@network(
    "transformers ViT",
    OTHER,
    package="transformers",
    small=dict(width=32, layers=2, batch=2, side=32),
    larger=dict(width=192, layers=6, batch=8, side=128),
)
def transformers_vit(width, layers, batch, side):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4)
    classifier = ViTForImageClassification(ViTConfig(**sizes, image_size=side, patch_size=16, num_labels=10)).train()
    images, labels = torch.rand(batch, 3, side, side), torch.randint(10, (batch,))
    irrelevant = torch.rand(batch, 1, side, side).round()

    def loss(outputs, score):  # right for the right reasons, Ross et al., 2017
        return outputs.loss + (irrelevant * score).square().sum((1, 2, 3)).mean()

    log_density = lambda outputs: outputs.logits.log_softmax(1)
    return Call(classifier, images, loss, kwargs=dict(labels=labels), log_density=log_density)


@network(
    "diffusers UNet2DModel",
    SPATIAL,
    package="diffusers",
    small=dict(width=32, batch=1, side=16),
    larger=dict(width=64, batch=4, side=32),
)
def diffusers_unet(width, batch, side):
    from diffusers import UNet2DModel

    blocks = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    unet = UNet2DModel(side, 3, 3, block_out_channels=(width, 2 * width), layers_per_block=1, **blocks)
    noise, sigma, times = torch.randn(batch, 3, side, side), torch.rand(batch, 1, 1, 1), torch.arange(batch)
    noisy = torch.rand(batch, 3, side, side) + sigma * noise

    def log_density(outputs, y):  # an energy of a field, Du et al., "Reduce, reuse, recycle", 2023
        return (outputs.sample * y).sum((1, 2, 3))

    def loss(outputs, score):
        return (sigma * score + noise).square().mean()

    return Call(unet, noisy, loss, args=(times,), log_density=log_density)


@network(
    "MONAI SegResNet",
    OTHER,
    package="monai",
    small=dict(filters=8, batch=1, side=16),
    larger=dict(filters=8, batch=1, side=48),
)
def monai_segresnet(filters, batch, side):
    from monai.networks.nets import SegResNet

    segmenter = SegResNet(spatial_dims=3, init_filters=filters, in_channels=1, out_channels=2)
    volumes, labels = torch.rand(batch, 1, side, side, side), torch.randint(2, (batch, side, side, side))

    def loss(logits, score):
        return F.cross_entropy(logits, labels) + score.square().mean()

    return Call(segmenter, volumes, loss, log_density=lambda logits: logits.logsumexp(1))


@network(
    "MONAI DenseNet",
    SPATIAL,
    package="monai",
    tolerance=0.02,  # of ReLUs, see PreActResNet-18
    small=dict(growth=8, batch=2, side=32),
    larger=dict(growth=32, batch=8, side=96),
)
def monai_densenet(growth, batch, side):
    from monai.networks.nets import DenseNet

    sizes = dict(init_features=2 * growth, growth_rate=growth, block_config=(3, 6, 6))
    classifier = DenseNet(spatial_dims=2, in_channels=1, out_channels=4, **sizes)
    scans, labels = torch.rand(batch, 1, side, side), torch.randint(4, (batch,))

    def loss(logits, score):
        return F.cross_entropy(logits, labels) + score.square().sum((1, 2, 3)).mean()

    return Call(classifier, scans, loss)


@network(
    "deepinv GSDRUNet",
    SPATIAL,
    package="deepinv",
    small=dict(width=8, batch=1, side=16),
    larger=dict(width=32, batch=4, side=64),
)
def deepinv_gsdrunet(width, batch, side):
    from deepinv.models import GSDRUNet

    denoiser = GSDRUNet(nc=(width, 2 * width, 2 * width, 4 * width))
    denoiser.detach = False  # from its gradient, which is so for inference
    clean = torch.rand(batch, 3, side, side)
    noisy = clean + 0.1 * torch.randn(clean.shape)

    def loss():
        return (denoiser(noisy.clone(), 0.1) - clean).square().mean()

    return Inside(denoiser, loss)
