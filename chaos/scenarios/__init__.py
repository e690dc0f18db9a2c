"""The scenarios: each is a function that harms a fleet and checks what must hold nevertheless."""
