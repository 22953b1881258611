"""Lower bounds on the distance of an image to another decision."""

import torch
from torch import Tensor

from cdn.methods.synthesis.inference import Inference


def lower_bounds(found: Inference, labels: Tensor, sigma: float | Tensor) -> Tensor:
    """Return lower bounds on the L2 size of a change that makes a reconstruction classifier err.

    For :func:`cdn.methods.synthesis.pixel_distance` at sigma, ``u_c(x) = sigma sqrt(-2 l_c(x))`` is a distance: as
    ``u_c(x)^2 = min_z |x - G_c(z)|^2 + sigma^2 |z|^2``, that of the point (x, 0) to the points ``(G_c(z), sigma z)``.
    Let y be the class of the image, and r the distance of x to its reconstruction in that class. A change of size e
    leaves ``u_c >= u_c(x) - e`` for every other class, and ``u_y^2 <= u_y(x)^2 + 2 e r + e^2``, for the latent of y may
    stay where it is. So no other class takes over before

        ``e = min_c (u_c^2 - u_y^2) / (2 (u_c + r))``.

    This is the bound of Schott et al. (2018, arXiv 1805.09190), but for one step: where they take the
    distance of x to the nearest image of class c, whatever its latent, the prior of z is here part of the distance. As
    that one is never larger, this bound is never smaller, and it needs no second search.

    Args:
        found: :class:`cdn.methods.synthesis.Inference`, of the pixel distance.
        labels: the true classes, int64 [N].
        sigma: standard deviation of the pixels, as in that distance.

    Returns:
        [N], with white as 1, over all values of an image; 0 where the image is misclassified.

    Assumes: exact inference in the other classes, at x and at all images near it. The search of :func:`infer` may miss
    the best latent of another class; then u_c is too large and so is the bound: **an estimate, not a certificate**.
    Inexact inference in the class of the image itself only makes it smaller.
    """
    sigma = torch.as_tensor(sigma).to(found.bound)
    u = sigma * (-2 * found.bound).clamp(min=0).sqrt()
    index = labels[:, None]
    own, reach = u.gather(1, index), sigma * (2 * found.distances.gather(1, index)).sqrt()
    bounds = (u - own) * (u + own) / (2 * (u + reach)).clamp(min=torch.finfo(u.dtype).tiny)
    return bounds.scatter(1, index, torch.inf).amin(1).clamp(min=0)
