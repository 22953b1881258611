"""Classification by reconstruction: one generator per class, and the class whose generator explains an image best.

Analysis by synthesis of Schott et al. (2018, arXiv 1805.09190). What Ju & Wagner (2020) add for larger images, better
class-conditional generators and likelihoods, is not here: on such images these small generators are poor classifiers.
"""

from cdn.methods.synthesis.classifier import ReconstructionClassifier
from cdn.methods.synthesis.decision_bounds import lower_bounds
from cdn.methods.synthesis.fit import fit
from cdn.methods.synthesis.generators import ClassGenerators, load_generators, save_generators
from cdn.methods.synthesis.inference import Inference, infer, pixel_distance
from cdn.methods.synthesis.latent_descent import latent_descent

__all__ = [
    "ClassGenerators",
    "Inference",
    "ReconstructionClassifier",
    "fit",
    "infer",
    "latent_descent",
    "load_generators",
    "lower_bounds",
    "pixel_distance",
    "save_generators",
]
