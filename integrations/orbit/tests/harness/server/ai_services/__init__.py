"""Services by kind and provider, as Orbit's package of this name has them."""
