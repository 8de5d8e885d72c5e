"""What adversarial training minimises. One file per method; the registry is the only list of them."""

from rift.methods.pgd_at import PGD_AT
from rift.methods.types import Method

METHODS: dict[str, Method] = {"pgd_at": PGD_AT}

__all__ = ["METHODS", "Method"]
