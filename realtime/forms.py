"""The forms of the operator's console: which connections to close and how, and what to publish."""

from __future__ import annotations

from typing import Any, NamedTuple

from django import forms
from django.db.models import Count, Max
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from .conf import get_settings
from .exceptions import LayerUnavailable
from .models import Connection, Subscription
from .protocol import CLOSE_CODES, MAX_REASON, TOPIC_HEARTBEAT, CloseCode, CloseMessage, client_reconnect
from .publishing import survey
from .topics import MAX_NAME, find_topic

MOST_CHOICES = 500
"""How many topics, and how many users, there are to choose from."""
LONGEST_SPREAD = 3600
CUSTOM = "custom"


class Choices(NamedTuple):
    """The number of connections, if it is known, and topics and users with theirs, most first, to choose from."""

    connections: int | None
    topics: list[tuple[str, str]]
    users: list[tuple[str, str]]


def find_choices() -> Choices:
    """Return what the registry knows. Where it is off the servers are asked how many connections they have."""
    if not get_settings().CONNECTION_REGISTRY:
        try:
            return Choices(sum(report.connections for report in survey()), [], [])
        except LayerUnavailable:
            return Choices(None, [], [])
    connections = Connection.objects.exclude(user_id="").values("user_id")
    users = connections.annotate(name=Max("username"), number=Count("pk")).order_by("-number", "name", "user_id")
    return Choices(
        Connection.objects.count(),
        busiest_topics(MOST_CHOICES),
        [
            (user["user_id"], f"{user['name'] or '#' + user['user_id']} ({user['number']})")
            for user in users[:MOST_CHOICES]
        ],
    )


def busiest_topics(most: int) -> list[tuple[str, str]]:
    """Return the topics with the most subscribers that the registry knows of, each with their number."""
    topics = Subscription.objects.values_list("topic").annotate(number=Count("pk")).order_by("-number", "topic")
    return [(topic, f"{topic} ({number})") for topic, number in topics[:most]]


def _describe_code(code: int) -> str:
    meaning = CLOSE_CODES[code].meaning
    if code == CloseCode.INTERRUPTED:
        meaning = _("interrupt: drop without a close frame")
    return _("%(code)d – %(meaning)s (client %(reaction)s)") % {
        "code": code,
        "meaning": meaning,
        "reaction": client_reconnect(code),
    }


class CloseForm(forms.Form):
    """Ask an operator which connections to close, with what, and how fast."""

    target = forms.ChoiceField(label=gettext_lazy("Which connections"), widget=forms.RadioSelect)
    topic = forms.CharField(label=gettext_lazy("Topic"), max_length=MAX_NAME, required=False, strip=False)
    user = forms.CharField(label=gettext_lazy("User"), max_length=64, required=False)
    ids = forms.CharField(widget=forms.HiddenInput, required=False)
    code = forms.ChoiceField(label=gettext_lazy("Code"), initial=CloseMessage().code)
    custom_code = forms.IntegerField(
        label=gettext_lazy("Custom code"),
        required=False,
        min_value=3000,
        max_value=4999,
        help_text=gettext_lazy("Clients come back after 3000–3499 and 4000–4499, and stay away after the others."),
    )
    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        required=False,
        initial=CloseMessage().reason,
        widget=forms.TextInput(attrs={"class": "vLargeTextField"}),
        help_text=gettext_lazy("Clients see it. At most %d bytes of UTF-8.") % MAX_REASON,
    )
    spread = forms.FloatField(
        label=gettext_lazy("Spread (seconds)"),
        initial=0,
        min_value=0,
        max_value=LONGEST_SPREAD,
        help_text=gettext_lazy(
            "The closes are staggered over this time, so that clients do not all come back at once. 0 closes at once."
        ),
    )

    def __init__(self, choices: Choices, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total = choices.connections
        self._offer("topic", choices.topics, _("Choose a topic"), _("The topic's name"))
        self._offer("user", choices.users, _("Choose a user"), _("The user's id (primary key)"))
        targets = [
            ("all", _("All client connections (%s)") % (_("number unknown") if self.total is None else self.total)),
            ("topic", _("Subscribers of a topic")),
            ("user", _("Connections of a user")),
        ]
        if self.selected:
            targets.insert(1, ("selection", _("This selection (%d)") % len(self.selected)))
        self._choose("target", targets)
        codes = [(str(code), _describe_code(code)) for code in CLOSE_CODES if code != CloseCode.SLOW_CONSUMER]
        self._choose("code", [*codes, (CUSTOM, _("Custom code, 3000 to 4999"))])

    def _choose(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def _offer(self, name: str, choices: list[tuple[str, str]], blank: str, hint: str) -> None:
        """Let the operator choose among ``choices``, or type where there are none. Any value that is sent is good."""
        widget: forms.Widget = forms.TextInput(attrs={"placeholder": hint})
        if choices:
            value = str(self[name].value() or "")
            if value not in dict(choices):
                choices = [(value, value), *choices] if value else choices
            widget = forms.Select(choices=[("", blank), *choices])
        widget.attrs["aria-label"] = self.fields[name].label
        self.fields[name].widget = widget

    @property
    def selected(self) -> list[str]:
        """The ids of the selected connections."""
        return [key for key in str(self["ids"].value() or "").split(",") if key]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        target = data.get("target")
        for name, missing in (("topic", _("Say which topic.")), ("user", _("Say which user."))):
            if target == name and not data.get(name) and name not in self.errors:
                self.add_error(name, missing)
            elif target and target != name and data.get(name):
                self.add_error(name, _("Leave this empty, or choose it above: it is unclear what to close."))
        code = data.get("code")
        if code == CUSTOM and data.get("custom_code") is None and "custom_code" not in self.errors:
            self.add_error("custom_code", _("Give a code from 3000 to 4999."))
        elif code and code != CUSTOM and data.get("custom_code") is not None:
            self.add_error("custom_code", _("Leave this empty, or choose “Custom code”: it is unclear which to send."))
        return data

    def clean_reason(self) -> str:
        reason = str(self.cleaned_data["reason"])
        try:
            CloseMessage(reason=reason)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            raise forms.ValidationError(f"{capfirst(details[0]['msg'].removeprefix('Value error, '))}.") from None
        return reason

    @property
    def message(self) -> CloseMessage:
        """The code and the reason to close with."""
        code = self.cleaned_data["code"]
        code = self.cleaned_data["custom_code"] if code == CUSTOM else int(code)
        return CloseMessage(code=code, reason=self.cleaned_data["reason"])

    @property
    def selector(self) -> dict[str, Any]:
        """The arguments of ``close_connections`` that say which connections are meant."""
        match target := self.cleaned_data["target"]:
            case "all":
                return {}
            case "selection":
                return {"ids": self.selected}
        return {target: self.cleaned_data[target]}

    @property
    def target_for_log(self) -> str:
        """What is closed, for programs."""
        match target := self.cleaned_data["target"]:
            case "all":
                return "all"
            case "selection":
                return f"selection:{len(self.selected)}"
        return f"{target}:{self.cleaned_data[target]!r}"

    @property
    def how_for_people(self) -> str:
        """What is closed and how, in English, to be kept."""
        message, spread = self.message, self.cleaned_data["spread"]
        text = f"close {self.target_for_people} with code {message.code}, reason “{message.reason}”"
        return f"{text}, over {spread:g} s" if spread else text

    @property
    def target_for_people(self) -> str:
        """What is closed, and how many connections that was before, in English, to be kept."""
        data = self.cleaned_data
        registry = get_settings().CONNECTION_REGISTRY
        number: int | None
        match data["target"]:
            case "all":
                what, number = "all client connections", self.total
            case "selection":
                what, number = "selected connections", len(self.selected)
            case "topic":
                what = f"subscribers of topic “{data['topic']}”"
                number = Subscription.objects.filter(topic=data["topic"]).count() if registry else None
            case _:
                what = f"connections of user {data['user']}"
                number = Connection.objects.filter(user_id=data["user"]).count() if registry else None
        return what if number is None else f"{what} ({number})"


class PublishForm(forms.Form):
    """Ask an operator what to publish on which topic, and refuse what the topic would. ``value`` is what to publish."""

    value: Any = None

    topic = forms.CharField(
        label=gettext_lazy("Topic"),
        max_length=MAX_NAME,
        strip=False,
        widget=forms.TextInput(attrs={"class": "vTextField", "list": "topics", "autocomplete": "off"}),
    )
    payload = forms.CharField(
        label=gettext_lazy("Value"),
        strip=False,
        widget=forms.Textarea(attrs={"class": "vLargeTextField", "rows": 6, "spellcheck": "false"}),
        help_text=gettext_lazy("Any JSON: an object, a list, a number, a text in double quotes, true, false or null."),
    )

    def clean_topic(self) -> str:
        name = str(self.cleaned_data["topic"])
        if name == TOPIC_HEARTBEAT:
            raise forms.ValidationError(_("The heartbeat is the server's own: run_heartbeats publishes on it."))
        topic = find_topic(name)
        if topic is None:
            raise forms.ValidationError(_("No topic of this name is declared."))
        if name == topic.name and topic.pattern.parameters:
            raise forms.ValidationError(_("Put values in the place of the parameters."))
        return name

    def clean_payload(self) -> str:
        payload = str(self.cleaned_data["payload"])
        try:
            self.value = from_json(payload, allow_inf_nan=False)
        except ValueError as error:
            raise forms.ValidationError(_("This is not valid JSON: %s.") % error) from None
        return payload

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if not self.errors and (topic := find_topic(data["topic"])) is not None and topic.model is not None:
            try:
                self.value = TypeAdapter(topic.model).validate_json(data["payload"])
            except ValidationError as error:
                self.add_error("payload", explain(error))
        return data


def explain(error: ValidationError) -> list[str]:
    """Return a sentence for each thing that is wrong with a value, which names the field where there is one."""
    sentences = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field, text = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
        sentences.append(f"{field}: {text}" if field else text)
    return sentences
