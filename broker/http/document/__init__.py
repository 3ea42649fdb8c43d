"""OpenAPI document: types of answers, examples, and the last touches."""
