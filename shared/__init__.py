"""The code and the vocabulary that the API, the workers and the client share; light to import."""
