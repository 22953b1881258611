import math

import pytest
import torch

from cdn.evaluation import calibration_error, psnr, reliability, ssim


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_of_known_differences():
    a = torch.zeros(3, 1, 4, 4)
    b = torch.stack([torch.full((1, 4, 4), value) for value in (0.1, 1.0, 0.0)])
    assert psnr(a, b).tolist() == pytest.approx([20.0, 0.0, math.inf], abs=1e-5)


def test_psnr_does_not_clip():
    assert psnr(torch.full((1, 1, 2, 2), 11.0), torch.ones(1, 1, 2, 2)).item() == pytest.approx(-20)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_refuse_to_broadcast(metric):
    with pytest.raises(ValueError, match="one shape"):
        metric(images(2, 1, 8, 8), images(1, 1, 8, 8))


def ssim_by_loops(a, b):
    """SSIM of one channel, as the definition reads."""
    height, width = a.shape
    rows, columns = min(11, height), min(11, width)
    window = torch.tensor(
        [
            [
                math.exp(-((i - (rows - 1) / 2) ** 2 + (j - (columns - 1) / 2) ** 2) / (2 * 1.5**2))
                for j in range(columns)
            ]
            for i in range(rows)
        ],
        dtype=torch.float64,
    )
    window /= window.sum()
    values = []
    for top in range(height - rows + 1):
        for left in range(width - columns + 1):
            p, q = (m[top : top + rows, left : left + columns] for m in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
            values.append(luminance * (2 * cov + 9e-4) / (vp + vq + 9e-4))
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("size", [(16, 13), (11, 12), (8, 8), (1, 20)])
def test_ssim_equals_its_definition(size):
    a, b = images(2, 3, *size), images(2, 3, *size, seed=1)
    expected = [sum(ssim_by_loops(p, q) for p, q in zip(x, y)) / 3 for x, y in zip(a, b)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-10)


def test_ssim_of_identical_images_is_one():
    a = images(2, 3, 20, 20)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])


def test_calibration_of_a_hand_computed_case():
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1])
    data = reliability(p, labels, bins=10)
    # Bin edges belong to the bin below, so 0.6 is in the sixth of ten.
    assert data.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert data.accuracy[9].item() == pytest.approx(2 / 3)
    assert data.confidence[9].item() == pytest.approx(2.9 / 3)
    assert calibration_error(p, labels, bins=10) == pytest.approx((0.4 + 0.9) / 4)


def test_a_confident_and_right_classifier_is_calibrated():
    assert calibration_error(torch.eye(4), torch.arange(4)) == 0
