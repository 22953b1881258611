"""Classification by reconstruction: one generator per class, and the class whose generator explains an image best."""
from .bounds import lower_bounds
from .classifier import ReconstructionClassifier
from .descent import latent_descent
from .fit import fit
from .generators import ClassGenerators, load_generators, save_generators
from .inference import Inference, infer, pixel_distance

__all__ = ["ClassGenerators", "Inference", "ReconstructionClassifier", "fit", "infer", "latent_descent",
           "load_generators", "lower_bounds", "pixel_distance", "save_generators"]
