from .sigma import SigmaConv2d, SigmaLinear, SigmaReparam, fuse, sigma_reparam, update_sigma

__all__ = [
    "SigmaLinear",
    "SigmaConv2d",
    "SigmaReparam",
    "sigma_reparam",
    "update_sigma",
    "fuse",
]
