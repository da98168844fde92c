"""All calls stand in one table."""

from __future__ import annotations

import importlib
import pkgutil

from podyd import contract
from podyd.contract.operation import Operation
from podyd.contract.table import OPERATIONS


def test_each_operation_that_is_declared_is_in_the_table_once() -> None:
    modules = [
        importlib.import_module(f"podyd.contract.{module.name}")
        for module in pkgutil.iter_modules(contract.__path__)
    ]
    declared = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Operation)
    ]
    assert len(declared) > 50
    assert sorted(item.path for item in OPERATIONS) == sorted(item.path for item in declared)


def test_no_path_is_served_twice() -> None:
    assert len({item.path for item in OPERATIONS}) == len(OPERATIONS)
