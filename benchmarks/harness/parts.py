"""A plugin of pytest: ``--part K/N`` runs every N-th of the tests, from the K-th on, so that N processes share them."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--part", metavar="K/N", help="only every N-th test, from the K-th on, which is counted from 1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.option.part is None:
        return
    part, parts = map(int, config.option.part.split("/"))
    mine = items[part - 1 :: parts]
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % parts != part - 1])
    items[:] = mine
