"""The scenarios. Each is one function, which harms a fleet and demands what must hold nevertheless."""
