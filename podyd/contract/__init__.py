"""The API as it is declared: each call's parameters, answers and documents."""
