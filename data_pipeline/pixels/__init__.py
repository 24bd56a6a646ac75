"""Encoded images -> the varied square a model sees."""
