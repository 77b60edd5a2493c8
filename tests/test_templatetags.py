"""The template tag that puts the browser client into a page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.finders import AppDirectoriesFinder
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, staticfiles_storage
from django.template import Context, Template
from django.test import RequestFactory
from django.urls import get_script_prefix, set_script_prefix
from django.utils.functional import SimpleLazyObject, empty

Tags = dict[str, dict[str, str | None]]


class Parser(HTMLParser):
    """Note each element with its attributes, and what stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Tags = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in self.tags
        self.tags[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data.strip()


class LazyNonce(SimpleLazyObject):
    """Be a nonce as Django 6 and django-csp make them: false until somebody has asked for it."""

    def __bool__(self) -> bool:
        return self._wrapped is not empty  # type: ignore[attr-defined]


@pytest.fixture
def prefix() -> Iterator[None]:
    """A site that is mounted below a prefix."""
    before = get_script_prefix()
    set_script_prefix("/mounted/")
    yield
    set_script_prefix(before)


def render(argument: str = "", **context: Any) -> Tags:
    """Return the elements that the tag renders."""
    template = Template(f"{{% load realtime %}}{{% realtime_client {argument} %}}")
    parser = Parser()
    parser.feed(template.render(Context(context)))
    assert parser.text == ""
    assert list(parser.tags) == ["link", "script"]
    return parser.tags


def url(argument: str = "", **context: Any) -> str | None:
    """Return the URL that the page is told to connect to."""
    return render(argument, **context)["script"]["data-realtime-url"]


def test_module_is_loaded_from_static_files() -> None:
    assert render() == {
        "link": {"rel": "modulepreload", "href": "/static/realtime/realtime.js"},
        "script": {"type": "module", "src": "/static/realtime/realtime.js", "data-realtime-url": "/ws/"},
    }


def test_module_that_the_storage_has_renamed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staticfiles_storage, "url", lambda name: f"https://cdn.example.com/{name}?a=1&b=2")
    tags = render()
    assert tags["script"]["src"] == tags["link"]["href"] == "https://cdn.example.com/realtime/realtime.js?a=1&b=2"


class ModulesToo(ManifestStaticFilesStorage):
    """Rename files inside ``import`` as well, which some sites do."""

    support_js_module_import_aggregation = True


@pytest.mark.parametrize("storage_class", [ManifestStaticFilesStorage, ModulesToo])
def test_collectstatic_takes_the_files(storage_class: type[ManifestStaticFilesStorage], tmp_path: Path) -> None:
    storage = storage_class(location=tmp_path)
    paths = {}
    for path, source in AppDirectoriesFinder(["realtime"]).list([]):
        with source.open(path) as file:
            storage.save(path, file)
        paths[path] = (storage, path)
    processed = list(storage.post_process(paths))
    assert not [result for _, _, result in processed if isinstance(result, Exception)]
    assert "realtime/realtime.js" in {name for name, hashed, _ in processed if hashed != name}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("", "/ws/"), ('"/"', "/"), ('"/live/"', "/live/"), ('"live/"', "/live/"), ('path="/live/"', "/live/")],
)
def test_path_is_below_the_prefix_that_the_site_is_mounted_at(argument: str, expected: str, prefix: None) -> None:
    assert url(argument) == "/mounted" + expected


@pytest.mark.parametrize("whole", ["wss://example.com/ws/", "https://example.com/", "//example.com/ws/", "WSS://x/"])
def test_whole_url_stays_as_it_is(whole: str, prefix: None) -> None:
    assert url("address", address=whole) == whole


def test_nonce_of_the_context_is_used() -> None:
    tags = render(csp_nonce="abc")
    assert tags["script"]["nonce"] == tags["link"]["nonce"] == "abc"


def test_nonce_of_the_request_is_used() -> None:
    request = RequestFactory().get("/")
    assert "nonce" not in render(request=request)["script"]
    request.csp_nonce = "abc"  # type: ignore[attr-defined]
    assert render(request=request)["script"]["nonce"] == "abc"


def test_nonce_that_nobody_has_asked_for_is_made() -> None:
    for context in (
        {"csp_nonce": LazyNonce(lambda: "abc")},
        {"request": type("Request", (), {"csp_nonce": LazyNonce(lambda: "abc")})},
    ):
        tags = render(**context)
        assert tags["script"]["nonce"] == tags["link"]["nonce"] == "abc"


def test_no_nonce_is_no_attribute() -> None:
    assert "nonce" not in render(csp_nonce=None, request=None)["script"]


def test_everything_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = """"'><script>alert(1)</script>&amp;"""
    monkeypatch.setattr(staticfiles_storage, "url", lambda name: name + evil)
    tags = render("path", path=evil, csp_nonce=evil)
    assert tags["script"] == {
        "type": "module",
        "src": "realtime/realtime.js" + evil,
        "data-realtime-url": "/" + evil,
        "nonce": evil,
    }
    assert tags["link"]["href"] == "realtime/realtime.js" + evil


def test_html_is_escaped_although_the_template_escapes_nothing() -> None:
    template = Template("{% load realtime %}{% autoescape off %}{% realtime_client path %}{% endautoescape %}")
    assert '"/&lt;b&gt;"' in template.render(Context({"path": "<b>"}))


def test_url_can_be_had_on_its_own() -> None:
    template = Template("{% load realtime %}{% realtime_client as tags %}[{{ tags }}]")
    assert template.render(Context()).startswith("[<link rel=")
