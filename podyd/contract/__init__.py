"""The API as it is promised: each call's parameters, answers and documents."""
