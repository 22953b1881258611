r"""Denoise whole photographs, of any size, with a model that was trained on small images or patches.

    python -m cdn.experiments.photographs RUN --images FOLDER [--tile 256]

White Gaussian noise is added to every image of the folder (PNG, JPEG, WebP or BMP; grey if the model is) and taken off
again, once with the noise level known and once with an estimate of it from the noisy image. Prints PSNR and SSIM per
noise level and PSNR per photograph, and writes report.json and picture.png: some photographs, with their busiest
squares at every level. Nothing is clipped before it is measured. Photographs are denoised one at a time, whatever
--batch-size.

To train on patches of larger pictures, sorted into folders split/class/*:

    python -m cdn.train --data imagefolder --data-dir PHOTOS --image-size 256 --crop-size 48 --crop-padding 0 \\
        --objective denoising
"""

import time
from typing import Any

import torch

from cdn.cli.process import run_command
from cdn.evaluation import SIGMAS
from cdn.experiments.runner import DENOISER, Experiment, Findings, Session
from cdn.images.image_files import find_images, read_image
from cdn.images.memory import advise_tile, require_memory
from cdn.methods.whole_images import denoise_photograph, mean_of, measure_denoised
from cdn.model.inputs import sigma_text
from cdn.noise_keys import EVALUATION
from cdn.pictures.photograph_details import means_table, per_photograph, photographs_figure


def measure(session: Session) -> Findings:
    """Denoise every photograph at every noise level."""
    args, model = session.args, session.model
    rows: list[dict[str, Any]] = []
    shown = []
    with session.evaluating(), torch.no_grad():
        for number, path in enumerate(session.bar(find_images(args.images)[: args.limit], unit="photograph")):
            x, _ = read_image(path, model.config["in_channels"])
            x = x.to(session.device)
            height, width = (min(side, args.tile or side) for side in x.shape[2:])
            require_memory(model, height, width, session.device, advise_tile(args.tile))
            start, key = time.perf_counter(), EVALUATION.key(args.seed, number)
            results = {sigma_text(sigma): denoise_photograph(model, x, sigma, key, args.tile) for sigma in SIGMAS}
            seconds = (time.perf_counter() - start) / len(SIGMAS)
            levels = {sigma: measure_denoised(result, x) for sigma, result in results.items()}
            rows.append(dict(name=path.name, size=list(x.shape[2:]), seconds=seconds, levels=levels))
            if number < args.show:
                shown.append((path.stem, x, results))
    means = {sigma: mean_of([row["levels"][sigma] for row in rows]) for sigma in rows[0]["levels"]}
    about = f"{len(rows)} photographs, {mean_of(rows, 'seconds'):.1f} seconds each and noise level"
    tables = means_table(means), per_photograph(rows)
    return Findings(
        dict(mean=means, photographs=rows), (about, *tables), {"picture.png": lambda: photographs_figure(shown)}
    )


main = Experiment("photographs", __doc__, measure, needs=(DENOISER,), limit=24)

if __name__ == "__main__":
    run_command(main)
