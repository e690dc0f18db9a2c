"""The scenarios: each is a function that harms a fleet and checks that the promises still hold."""
