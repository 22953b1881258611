"""Energies of molecules, trained on forces, as packages ship them."""

from typing import TypeVar

import torch
from torch.utils.data import dataloader

from benchmarks.networks.case import OTHER, Call, Inside, network


def molecules(count, atoms):
    """Draw molecules of carbon and oxygen on jittered lattices.

    Returns:
        atomic numbers and positions of all atoms, the molecule of each, and the pairs [2, P] of atoms of one molecule,
        of which none is closer than 0.7.
    """
    side = round(atoms ** (1 / 3) + 0.5)
    lattice = 1.2 * torch.cartesian_prod(*[torch.arange(side, dtype=torch.get_default_dtype())] * 3)[:atoms]
    positions = lattice.repeat(count, 1) + 0.25 * torch.rand(count * atoms, 3)
    molecule = torch.arange(count).repeat_interleave(atoms)
    same = (molecule[:, None] == molecule) & ~torch.eye(len(molecule), dtype=torch.bool)
    numbers = torch.where(torch.rand(count * atoms) < 0.3, 8, 6)
    return numbers, positions, molecule, same.nonzero().T


# schnetpack 2.1 imports this name, which torch has no longer.
vars(dataloader).setdefault("T_co", TypeVar("T_co"))


@network(
    "schnetpack SchNet",
    OTHER,
    package="schnetpack",
    small=dict(name="SchNet", width=16, count=2, atoms=6),
    larger=dict(name="SchNet", width=128, count=16, atoms=18),
)
@network(
    "schnetpack PaiNN",
    OTHER,
    package="schnetpack",
    small=dict(name="PaiNN", width=16, count=2, atoms=6),
    larger=dict(name="PaiNN", width=128, count=16, atoms=18),
)
def schnetpack_potential(name, width, count, atoms):
    from schnetpack import representation
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import BesselRBF, CosineCutoff

    features = getattr(representation, name)(width, 3, BesselRBF(20, 5.0), CosineCutoff(5.0))
    outputs = [Atomwise(width, output_key="energy"), Forces()]
    potential = NeuralNetworkPotential(features, [PairwiseDistances()], outputs)
    numbers, positions, molecule, (first, second) = molecules(count, atoms)
    sample = dict(_atomic_numbers=numbers, _positions=positions, _idx_m=molecule, _idx_i=first, _idx_j=second)
    sample |= dict(_offsets=torch.zeros(len(first), 3), _n_atoms=torch.full((count,), atoms))
    forces = torch.randn(positions.shape)

    def loss():
        predicted = potential(dict(sample))
        return predicted["energy"].square().mean() + (predicted["forces"] - forces).square().mean()

    return Inside(potential, loss)


@network(
    "PyG SchNet",
    OTHER,
    package="torch-geometric",
    small=dict(width=16, count=2, atoms=6),
    larger=dict(width=128, count=16, atoms=18),
)
def pyg_schnet(width, count, atoms):
    from torch_geometric.nn import SchNet

    numbers, positions, molecule, pairs = molecules(count, atoms)
    graph = lambda positions, molecule: (pairs, (positions[pairs[0]] - positions[pairs[1]]).norm(dim=1))
    schnet = SchNet(width, width, num_interactions=3, interaction_graph=graph)
    forces = torch.randn(positions.shape)

    def loss(energy, score):
        return energy.square().mean() + (-score[1] - forces).square().mean()

    return Call(schnet, (numbers, positions), loss, args=(molecule,), log_density=lambda energy: energy)


@network(
    "MACE", OTHER, package="mace-torch", small=dict(width=4, count=1, atoms=6), larger=dict(width=32, count=4, atoms=12)
)
def mace(width, count, atoms):
    import numpy as np
    from mace.modules import interaction_classes
    from mace.modules.models import MACE, o3  # e3nn, which loads only after MACE has allowed it to

    blocks = interaction_classes["RealAgnosticResidualInteractionBlock"]
    sizes = dict(r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=2, num_interactions=2, correlation=2)
    hidden = dict(
        hidden_irreps=o3.Irreps(f"{width}x0e + {width}x1o"), MLP_irreps=o3.Irreps("8x0e"), gate=torch.nn.SiLU()
    )
    kinds = dict(num_elements=2, atomic_numbers=[6, 8], atomic_energies=np.zeros(2), avg_num_neighbors=atoms - 1.0)
    potential = MACE(interaction_cls=blocks, interaction_cls_first=blocks, **sizes, **hidden, **kinds)
    numbers, positions, molecule, pairs = molecules(count, atoms)
    sample = dict(positions=positions, batch=molecule, edge_index=pairs, shifts=torch.zeros(pairs.shape[1], 3))
    sample |= dict(unit_shifts=sample["shifts"], cell=torch.zeros(3 * count, 3), ptr=atoms * torch.arange(count + 1))
    sample |= dict(node_attrs=torch.nn.functional.one_hot((numbers == 8).long(), 2).to(positions.dtype))
    forces = torch.randn(positions.shape)

    def loss():
        predicted = potential(dict(sample), training=True)
        return predicted["energy"].square().mean() + (predicted["forces"] - forces).square().mean()

    return Inside(potential, loss)
