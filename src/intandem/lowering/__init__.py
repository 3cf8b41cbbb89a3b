from intandem.lowering.lower import lower

__all__ = ["lower"]
