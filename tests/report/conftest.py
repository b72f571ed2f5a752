"""A real browser, for the pages of reports."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system; tests are skipped, saying so, without one.

    While it is open the thread has a running event loop, so nothing else may start one, such as
    Orbax: write what is looked at before.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()
