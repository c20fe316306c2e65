"""EquiAV (Kim et al., ICML 2024, arXiv 2403.09502): two towers, equivariant to described transformations."""
