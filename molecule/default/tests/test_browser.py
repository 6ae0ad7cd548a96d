"""A person with a real browser: logs in to the web UI and sees the run that succeeded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_under_test import Platform, Run
from playwright.sync_api import Page, expect, sync_playwright

pytestmark = pytest.mark.unit("airflow_scheduler", "airflow-api-server")
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",  # its own sandbox does not start for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # It would ask Google's hosts at every start, which closed networks refuse.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def page(platform: Platform) -> Iterator[Page]:
    scheduler = platform.first("airflow_scheduler")
    # The base URL has the host's name, which not every machine that tests can resolve.
    resolve = f"--host-resolver-rules=MAP {scheduler} {platform.addresses[scheduler]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, resolve])
        page = browser.new_page(base_url=f"http://{scheduler}:8080", viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


def test_logs_in_and_sees_the_run_that_succeeded(platform: Platform, run: Run, page: Page, artifacts: Path) -> None:
    errors: list[str] = []
    page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 500 else None)

    page.goto("/")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", "not-the-password")
    page.click("input[type=submit]")
    expect(page.get_by_text("Invalid login")).to_be_visible()

    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", platform.secrets["airflow_admin_password"])
    page.click("input[type=submit]")
    expect(page.get_by_text("Welcome")).to_be_visible()
    for component in ("MetaDatabase", "Scheduler", "Triggerer", "Dag Processor"):
        expect(page.get_by_text(component, exact=True).first).to_be_visible()
    page.screenshot(path=artifacts / "home.png")

    page.goto(f"/dags/user_transformation/runs/{run.run_id}")
    expect(page.get_by_text(re.compile("^Success$", re.IGNORECASE)).first).to_be_visible()
    for task in ("start", "pre_check", "summary", "end"):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=task, exact=True))
        expect(row.filter(has_text=re.compile("Success", re.IGNORECASE)).first).to_be_visible()
    page.screenshot(path=artifacts / "run.png")
    assert errors == []
