"""What each operation calls: a module for each family, with the services that it needs."""
