"""The console in a real Chromium: live, from one host, usable on a phone and without script."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.urls import reverse
from knox.models import AuthToken
from playwright.sync_api import Page, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from server.registry.models import Model
from server.rollouts import queries
from server.training import actions as training
from server.training.models import TrainingRun
from tests.console.test_pages import _pages
from tests.photos.people import picture, register
from tests.support.data import require_program
from tests.support.processes import free_port

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PASSWORD = "night-ferry-1"
SMALLEST_THUMBNAIL_PX = 64
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = require_program("chromium", package="chromium")
    # Playwright's loop lives in this thread, where Django then sees an asynchronous context.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=ARGUMENTS)
        yield browser
        browser.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """Serve on a port below those the kernel gives to outgoing connections."""
    server = LiveServer(f"127.0.0.1:{free_port()}")
    yield server
    server.stop()


class Visit:
    """A signed-in browser, which notes whatever it should not have met."""

    def __init__(self, page: Page, base: str) -> None:
        self.page, self.base = page, base
        self.trouble: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.trouble.append(f"script: {error}"))
        page.on("request", self._watch)
        page.on("response", self._check)

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.trouble.append(f"console: {message.text}")

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.trouble.append(f"another host: {request.url}")

    def _check(self, response: Any) -> None:
        if response.status >= 400:
            self.trouble.append(f"{response.status}: {response.url}")

    def open(self, address: str) -> None:
        self.page.goto(self.base + address)

    def sign_in(self) -> None:
        self.open(reverse("admin:login"))
        self.page.fill("[name=username]", "boss")
        self.page.fill("[name=password]", PASSWORD)
        self.page.press("[name=password]", "Enter")
        self.page.wait_for_url(f"{self.base}{reverse('admin:index')}")


@pytest.fixture
def visit(
    chromium: Any, live_server: Any, django_user_model: Any, model: Model
) -> Iterator[Callable[..., Visit]]:
    django_user_model.objects.create_superuser("boss", password=PASSWORD)
    contexts = []

    def begin(viewport: dict[str, int] = DESKTOP, **options: Any) -> Visit:
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        visit = Visit(context.new_page(), live_server.url)
        visit.sign_in()
        return visit

    yield begin
    for context in contexts:
        context.close()


def test_every_page_is_quiet_and_fits_a_phone(
    visit: Callable[..., Visit], client: Any, model: Model, django_user_model: Any
) -> None:
    phone = visit(PHONE)
    wide = {}
    register(client).send(picture(1), model=model.slug)
    accounts = django_user_model.objects.all()
    AuthToken.objects.create(accounts.get(username="boss"))
    more = [reverse("admin:auth_user_delete", args=[user.pk]) for user in accounts]
    for address in [*_pages(), *more, "/api/v1/docs"]:
        phone.open(address)
        overflow = phone.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if overflow > 0:
            wide[address] = overflow
    assert not wide
    assert not phone.trouble


def test_photos_are_reviewed_on_a_phone(
    visit: Callable[..., Visit], client: Any, model: Model
) -> None:
    person = register(client)
    for seed in range(3):
        assert person.send(picture(seed), model=model.slug).status_code == 201
    phone = visit(PHONE)
    phone.open(reverse("admin:photos_photo_changelist"))
    for image in phone.page.locator("#result_list img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", value=True)
        shown = image.evaluate(
            """image => {
                const [photo, cell, row] = [image, image.closest("td, th"), image.closest("tr")]
                    .map(element => element.getBoundingClientRect());
                return {
                    height: photo.height, width: photo.width,
                    is_whole: [cell, row].every(box => box.top <= photo.top
                        && box.bottom >= photo.bottom && box.right >= photo.right),
                };
            }"""
        )
        assert shown["is_whole"]
        assert min(shown["height"], shown["width"]) > SMALLEST_THUMBNAIL_PX
    assert not phone.trouble


def test_a_run_goes_live_without_a_reload(visit: Callable[..., Visit], model: Model) -> None:
    run = training.request_run(model=model)
    console = visit()
    console.open(reverse("admin:training_trainingrun_change", args=[run.pk]))
    page = console.page
    expect(page.get_by_role("heading", name="Waiting for a worker")).to_be_visible()
    page.evaluate("window.notReloaded = true")

    training.start_run(run_id=run.pk)
    training.write_line(run=run, stage="training", message="Training on 20 photos.")
    training.report_progress(run=run, stage="training", step=3, total=10, metrics={"loss": 0.7})
    expect(page.get_by_role("heading", name="Running: training")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "30")
    expect(page.locator(".nf-log")).to_contain_text("Training on 20 photos.")
    training.report_progress(run=run, stage="training", step=6, total=10, metrics={"loss": 0.2})
    expect(page.get_by_role("img", name="Loss, training: loss from 0.7 to 0.2")).to_be_visible()

    training.fail_run(run_id=run.pk, reason="Too few photos of metal.")
    expect(page.get_by_role("heading", name="Failed")).to_be_visible()
    expect(page.get_by_text("Too few photos of metal.").first).to_be_visible()
    assert page.evaluate("window.notReloaded")
    assert not console.trouble


def test_a_run_can_be_followed_without_script(visit: Callable[..., Visit], model: Model) -> None:
    run = training.request_run(model=model)
    training.start_run(run_id=run.pk)
    training.report_progress(run=run, stage="training", step=1, total=4, metrics={"loss": 0.7})
    console = visit(java_script_enabled=False)
    address = reverse("admin:training_trainingrun_change", args=[run.pk])
    console.open(address)
    expect(console.page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "25")
    training.report_progress(run=run, stage="training", step=2, total=4, metrics={"loss": 0.6})
    console.page.reload()
    expect(console.page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")


def test_a_run_is_cancelled_after_a_question(visit: Callable[..., Visit], model: Model) -> None:
    run = training.request_run(model=model)
    console = visit()
    console.open(reverse("admin:training_trainingrun_change", args=[run.pk]))
    console.page.get_by_role("link", name="Cancel").click()
    expect(console.page.get_by_text("makes no version")).to_be_visible()
    console.page.get_by_role("button", name="Cancel the run").click()
    expect(console.page.get_by_role("heading", name="Cancelled")).to_be_visible()
    assert TrainingRun.objects.get(pk=run.pk).state == "cancelled"


def test_release_roll_back_and_kill_each_ask_first(
    visit: Callable[..., Visit], model: Model
) -> None:
    channel = model.channels.get()
    console = visit(PHONE)
    page, address = console.page, reverse("admin:rollouts_channel_change", args=[channel.pk])

    def choose(action: str, button: str, *, reason: str) -> None:
        console.open(address)
        # On a phone the buttons wait behind one with three dots.
        page.locator("a:has-text('more_horiz')").click()
        page.get_by_role("link", name=action).click()
        expect(page.get_by_role("heading", name="What will happen")).to_be_visible()
        page.get_by_label("Reason").fill(reason)
        page.get_by_role("button", name=button).click()
        page.wait_for_url(f"{console.base}{address}")

    choose("Roll back", "Roll back", reason="wrong on glass")
    assert queries.current_release(channel).version.number == 1
    expect(page.get_by_text("serves version 1 as v3")).to_be_visible()

    version = model.versions.get(number=2)
    console.open(reverse("admin:registry_modelversion_change", args=[version.pk]))
    page.locator("a:has-text('more_horiz')").click()
    page.get_by_role("link", name="Release this version").click()
    expect(page.get_by_text("All of them are offered version 2")).to_be_visible()
    page.get_by_role("button", name="Release", exact=True).click()
    page.wait_for_url(f"{console.base}{address}")
    assert queries.current_release(channel).label == "v4"

    choose("Kill", "Kill it now", reason="leaks a secret")
    assert queries.current_release(channel).version.number == 1
    assert channel.releases.filter(killed_at__isnull=False, version=version).count() == 2
    assert not console.trouble
