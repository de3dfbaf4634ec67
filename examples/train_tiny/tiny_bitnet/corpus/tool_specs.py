"""Functions that a user may ask for: names, parameters, and requests that need them with these values.

Most are put together at random; a few dozen templates of everyday functions bring natural requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import words
from .source import Source
from .words import listed

Value = str | int | float | bool
Arguments = dict[str, Value]
Maker = Callable[[Source], Value]

# A literal of conformance suites that must never be drawn.
_FORBIDDEN = ("magic", "my_adder", "unicode_customer", "greeting_generator", "get_weather_function")

_VERBS = listed(
    "get find search create set send book convert compute check list open delete update translate play order "
    "track add show make start lookup count fetch"
)
_TOPICS = listed(
    "weather user order email message flight ticket price stock song movie event task note file alarm timer "
    "light room table item product city country customer account payment report recipe route map news photo "
    "contact reminder score team game password label value"
)
_STRINGS = listed(
    "name city location query title text topic product item song user customer country subject message label "
    "keyword place company color date email id description style"
)
_INTEGERS = listed("count number amount id input x y age quantity limit minutes size n value price year days")
_NUMBERS = listed("amount price weight temperature value rate distance")


class Tool(NamedTuple):
    name: str
    definition: dict[str, Any]  # as in the OpenAI API
    ask: Callable[[Source], tuple[str, Arguments]]  # a request and the arguments of the call


def definition(source: Source, name: str, description: str, types: Mapping[str, str]) -> dict[str, Any]:
    """The definition in one of the styles in which libraries write it."""
    titles, described = source.chance(0.25), source.chance(0.2)
    properties: dict[str, Any] = {}
    for argument, kind in types.items():
        entry: dict[str, Any] = {"type": kind}
        if described:
            entry = {"description": f"The {argument.replace('_', ' ')}", **entry}
        if titles:
            entry = {"title": argument.replace("_", " ").title(), **entry}
        if kind == "integer" and source.chance(0.04):
            entry |= {"minimum": 0, "maximum": 9999}
        properties[argument] = entry
    if types and source.chance(0.1):  # as the docstring of a function
        lines = [f"    {a}: The {a.replace('_', ' ')}." for a in types]
        description = "\n\n".join((description, "\n".join(("Args:", *lines))))
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if types:
        parameters["required"] = list(types)
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def spoken(name: str) -> str:
    """A tool name as words: getUser, get_user -> "get user"."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else " " if c == "_" else c for c in name)
    return spaced.strip()


def _place(source: Source) -> str:
    return source.city() if source.chance(0.88) else source.foreign_phrase()


def _person(source: Source) -> str:
    kind = source.integer(0, 9)
    if kind <= 6:
        return source.full_name()
    return source.accented() if kind == 7 else source.foreign_phrase()


def _thing(source: Source) -> str:
    return source.weighted((source.phrase, source.word, source.foreign_phrase), (7, 2, 1))()


def value_of(source: Source, kind: str, argument: str) -> Value:
    """A value that suits an argument of this type and name."""
    if kind == "integer":
        return source.number() if source.chance(0.9) else int("1" + source.digits())
    if kind == "number":
        return source.decimal() if source.chance(0.7) else source.number()
    if argument in ("city", "location", "country", "place"):
        return _place(source)
    if argument in ("name", "user", "customer"):
        return _person(source)
    special: dict[str, Maker] = {
        "date": Source.date,
        "email": Source.email,
        "color": lambda s: s.choice(words.COLORS),
        "id": lambda s: s.digits() if s.chance(0.5) else s.identifier(),
        "company": lambda s: s.invented_name() if s.chance(0.7) else s.foreign_phrase(),
    }
    if argument in special:
        return special[argument](source)
    return source.weighted(
        (source.phrase, source.word, source.foreign_phrase, source.full_name), (5, 3, 1.4, 1)
    )()


def quoted(source: Source, value: Value) -> str:
    if not isinstance(value, str) or source.chance(0.65):
        return str(value)
    return source.choice(("'{}'", '"{}"')).format(value)


def glossed(source: Source, asked: str, values: Arguments) -> str:
    """Sometimes what a foreign name means, in brackets behind it: it is no part of the value."""
    for value in values.values():
        if isinstance(value, str) and not value.isascii() and source.chance(0.3):
            said = next((form for form in (f"'{value}'", f'"{value}"') if form in asked), value)
            meaning = source.phrase(1, 2) if source.chance(0.7) else source.invented_name()
            asked = asked.replace(said, f"{said} ({meaning.title()})", 1)
    return asked


# Everyday functions: (names, descriptions, parameters in order with makers, requests). In a request {0}, {1}
# are the values; `{0q}` would be quoted. Wordings beyond the first may be held out.
class _Template(NamedTuple):
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, ...], str, Maker], ...]
    requests: tuple[str, ...]


def _p(names: str, kind: str, maker: Maker) -> tuple[tuple[str, ...], str, Maker]:
    return tuple(names.split("|")), kind, maker


_CITY = _p("city|location|place|town", "string", _place)
_WHO = _p("name|user|person|customer|contact", "string", _person)
_WHAT = _p("item|product|thing|article", "string", _thing)
_QUERY = _p("query|text|q|keywords|search_term", "string", lambda s: s.phrase(1, 4))
_COUNT = _p("quantity|count|amount|number", "integer", lambda s: s.number(99))
_INDUSTRIES = listed("technology food car travel music energy paper shipping software media steel toy")
_NATIONS = listed("Chinese Japanese Korean Russian Greek Indian French German Italian Spanish Polish Thai")


def _firm(source: Source) -> str:
    return source.foreign_phrase() if source.chance(0.75) else source.accented()


def _firm_description(source: Source) -> str:
    return f"a {source.choice(_NATIONS)} {source.choice(_INDUSTRIES)} {source.choice(('company', 'firm'))}"


_TEMPLATES: tuple[_Template, ...] = (
    _Template(
        ("get_weather", "weather", "current_weather", "fetch_weather", "weather_report", "weatherLookup"),
        ("Get the weather of a place.", "Current weather in a city", "Tells the weather."),
        (_CITY,),
        ("What is the weather in {0}?", "How is the weather in {0}?", "What's the weather like in {0}?",
         "Tell me the weather in {0}.", "weather in {0}", "Is it raining in {0}?", "Will it rain in {0}?",
         "How warm is it in {0} today?", "What is the weather in {0} today?", "Check the weather in {0}",
         "What's the current weather in {0}?", "I am going to {0}. How is the weather there?"),
    ),
    _Template(
        ("get_time", "current_time", "time_in_city", "clock"), ("Get the time in a city.",
         "Current local time"),
        (_CITY,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "time in {0}?",
         "What is the time in {0} now?",
         "Which time is it in {0}?"),
    ),
    _Template(
        ("get_population", "population_of", "city_population"), ("Number of people in a place.",),
        (_CITY,),
        ("What is the population of {0}?", "How many people live in {0}?", "population of {0}",
         "Tell me how many people live in {0}."),
    ),
    _Template(
        ("get_stock_price", "stock_price", "lookup_stock", "quote"), ("Get the price of a stock.",),
        (_p("symbol|company|ticker|stock", "string",
            lambda s: s.word(1, 1).upper() if s.chance(0.5) else s.invented_name()),),
        ("What is the stock price of {0}?", "How much is a share of {0}?", "Stock price of {0}, please",
         "Get the stock price for {0}", "How is {0} doing on the stock market?"),
    ),
    _Template(
        ("add", "add_numbers", "sum_tool", "adder", "plus"),
        ("Add two numbers.", "Adds a and b.", "The sum of two integers."),
        (_p("a|x|first", "integer", Source.number), _p("b|y|second", "integer", Source.number)),
        ("What is {0} plus {1}?", "Add {0} and {1}.", "What is {0} + {1}?", "What is the sum of {0} and {1}?",
         "{0} + {1} = ?", "Compute {0} + {1}", "How much is {0} + {1}? Use the tool."),
    ),
    _Template(
        ("multiply", "multiply_numbers", "times", "product_tool"),
        ("Multiply two numbers.", "Multiplies a and b.", "The product of two integers."),
        (_p("a|x|first", "integer", Source.number), _p("b|y|second", "integer", Source.number)),
        ("What is {0} times {1}?", "Multiply {0} by {1}.", "What is {0} * {1}?", "{0} x {1} = ?",
         "Compute {0} * {1}", "What is the product of {0} and {1}?"),
    ),
    _Template(
        ("calculate", "calculator", "evaluate", "math_tool"), ("Evaluate an expression.", "A calculator."),
        (_p("expression|formula|query|input", "string",
            lambda s: f"{s.number()} {s.choice('+-*/')} {s.number()}"),),
        ("Calculate {0}", "What is {0}?", "Please compute {0}.", "Use the calculator for {0}.", "{0} = ?"),
    ),
    _Template(
        ("search", "web_search", "search_docs", "lookup", "search_tool", "find_documents"),
        ("Search the web.", "Search for documents.", "Look something up."),
        (_QUERY,),
        ("Search for {0}.", "Look up {0}.", "Find information about {0}.", "search {0}",
         "Search the web for {0}",
         "I want to know more about {0}. Please search.", "Can you find something about {0}?"),
    ),
    _Template(
        ("send_email", "email", "mail_to", "send_mail"), ("Send an email.",),
        (_p("to|address|recipient", "string", Source.email), _p("subject|title", "string",
         lambda s: s.phrase(1, 3))),
        ("Send an email to {0} with the subject {1}.", "Write to {0} about {1}.", "Email {0}, subject: {1}",
         "Please send {0} a mail with the subject {1}."),
    ),
    _Template(
        ("send_message", "message", "text_contact"), ("Send a message to a person.",),
        (_WHO, _p("text|message|body", "string", lambda s: s.phrase(2, 5))),
        ('Send {0} the message "{1}".', "Tell {0}: {1}", "Write to {0}: {1}", "Message {0}: {1}"),
    ),
    _Template(
        ("set_timer", "timer", "start_timer"), ("Set a timer.",),
        (_p("minutes|duration|length", "integer", lambda s: s.number(99)),),
        ("Set a timer for {0} minutes.", "Timer for {0} minutes", "Remind me in {0} minutes.",
         "Please start a timer of {0} minutes."),
    ),
    _Template(
        ("set_alarm", "alarm", "wake_up"), ("Set an alarm.",), (_p("time|at|hour", "string", Source.time),),
        ("Set an alarm for {0}.", "Wake me up at {0}.", "Alarm at {0}", "I have to get up at {0}."),
    ),
    _Template(
        ("book_flight", "find_flight", "search_flights"), ("Find a flight.",
         "Book a flight between two cities."),
        (_p("origin|from_city|start|departure", "string", Source.city),
         _p("destination|to_city|end|arrival", "string", Source.city)),
        ("Book a flight from {0} to {1}.", "I want to fly from {0} to {1}.", "Find flights from {0} to {1}",
         "Is there a flight from {0} to {1}?", "I need to get from {0} to {1} by plane."),
    ),
    _Template(
        ("get_distance", "distance", "route_length"), ("Distance between two places.",),
        (_p("start|origin|a|from_place", "string", Source.city), _p("end|destination|b|to_place", "string",
         Source.city)),
        ("How far is it from {0} to {1}?", "What is the distance between {0} and {1}?",
         "distance from {0} to {1}", "How many kilometers are between {0} and {1}?"),
    ),
    _Template(
        ("play_song", "play_music", "music_player"), ("Play music.", "Play a song."),
        (_p("title|song|track", "string", lambda s: s.phrase(1, 3).title()),),
        ("Play {0}.", "Play the song {0}.", "I want to hear {0}.", "Put on {0}, please."),
    ),
    _Template(
        ("convert_currency", "exchange", "currency_converter"), ("Convert money.",),
        (_p("amount|value", "integer", Source.number),
         _p("source|from_currency", "string", lambda s: s.choice(listed("EUR USD GBP JPY CHF CNY"))),
         _p("target|to_currency", "string", lambda s: s.choice(listed("INR SEK PLN BRL KRW CAD")))),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "{0} {1} in {2}?",
         "Change {0} {1} into {2}."),
    ),
    _Template(
        ("translate", "translate_text", "translator"), ("Translate a text.",),
        (_p("text|phrase|sentence", "string", lambda s: s.phrase(1, 4)),
         _p("language|target|to", "string",
         lambda s: s.choice(listed("French German Spanish Italian Polish")))),
        ("Translate {0} into {1}.", "How do you say {0} in {1}? Use the tool.", "Translate '{0}' to {1}",
         "Please translate {0} to {1}."),
    ),
    _Template(
        ("order_item", "place_order", "buy", "add_to_cart"), ("Order a product.",
         "Add a product to the cart."),
        (_WHAT, _COUNT),
        ("Order {1} of {0}.", "I want to buy {1} {0}.", "Put {1} {0} into my cart.", "Buy {0}, quantity {1}.",
         "Please order {0}. I need {1}."),
    ),
    _Template(
        ("create_customer", "add_client", "register_company", "new_customer"),
        ("Create a customer.", "Register a new client."),
        (_p("customer_name|name|company|client_name", "string", _firm),
         _p("description|details|info|notes", "string", _firm_description)),
        ("Add a client named '{0}': {1}", "Register the customer '{0}', {1}.",
         "Make a new customer called '{0}' - {1}", "New client: {0} ({1})",
         'Please add "{0}" as a customer, {1}.',
         "We have a new customer '{0}' - {1}"),
    ),
    _Template(
        ("create_user", "add_user", "register_user"), ("Create a user.",),
        (_WHO, _p("age|years", "integer", lambda s: s.integer(5, 99))),
        ("Create a user named {0}, aged {1}.", "Add the user {0}, {1} years old.", "New user {0}, age {1}",
         "Register {0} who is {1} years old."),
    ),
    _Template(
        ("get_user", "find_contact", "lookup_person", "get_profile"), ("Find a person.",
         "Get a user's profile."),
        (_WHO,),
        ("Find the user {0}.", "Who is the customer {0}?", "Look up {0} for me.",
         "Show me the profile of {0}.",
         "Get the contact of {0}", "What do we know about the user {0}?"),
    ),
    _Template(
        ("get_order", "order_status", "track_order", "track_package"), ("Status of an order.",),
        (_p("order_id|id|number|code", "string", lambda s: s.digits() if s.chance(0.6) else s.identifier()),),
        ("Where is my order {0}?", "What is the status of order {0}?", "Track {0}",
         "Has order {0} been sent?",
         "Look up the order {0}."),
    ),
    _Template(
        ("create_event", "add_event", "schedule_meeting", "add_to_calendar"),
        ("Add an event to the calendar.",),
        (_p("title|name|event", "string", lambda s: s.phrase(1, 3)), _p("date|day|when", "string",
         Source.date)),
        ("Create the event {0} on {1}.", "Add {0} to my calendar for {1}.", "Schedule {0} on {1}",
         "I have {0} on {1}, put it into the calendar."),
    ),
    _Template(
        ("write_text", "generate_poem", "make_greeting", "compose"), ("Write a short text in a style.",),
        (_p("style|tone|mood|manner", "string", lambda s: s.choice(words.ADJECTIVES + words.JOBS)),),
        ("Write a {0} greeting.", "Use the tool to make a {0} poem.",
         "Generate a {0} greeting with the tool.",
         "I would like a {0} text.", "Make me a {0} poem."),
    ),
    _Template(
        ("set_light", "lights", "switch_light"), ("Set the color of a lamp.",),
        (_p("room|place", "string",
         lambda s: s.choice(listed("kitchen bedroom bathroom hall garden office"))),
         _p("color|light", "string", lambda s: s.choice(words.COLORS))),
        ("Make the light in the {0} {1}.", "Set the {0} light to {1}.", "Turn the {0} lamp {1}.",
         "I want {1} light in the {0}."),
    ),
    _Template(
        ("set_temperature", "thermostat", "heat_room"), ("Set the temperature of a room.",),
        (_p("room|place", "string",
         lambda s: s.choice(listed("kitchen bedroom bathroom hall garden office"))),
         _p("degrees|temperature|value", "number", lambda s: s.integer(40, 290) / 10)),
        ("Set the {0} to {1} degrees.", "Make it {1} degrees in the {0}.", "Heat the {0} to {1}.",
         "I want {1} degrees in the {0}."),
    ),
    _Template(
        ("remember", "save_note", "add_note", "take_note"), ("Save a note.",),
        (_p("note|text|content", "string", lambda s: s.phrase(2, 6)),),
        ("Make a note: {0}", "Remember this: {0}", "Note down {0}.", "Save the note '{0}'."),
    ),
)  # fmt: skip


# These functions never occur in training.
_HELD_OUT = ("get_population", "get_order", "send_message", "create_event")
_KNOWN = [template for template in _TEMPLATES if template.names[0] not in _HELD_OUT]
_UNKNOWN = [template for template in _TEMPLATES if template.names[0] in _HELD_OUT]
_KNOWN_NAMES = {name for template in _KNOWN for name in template.names}


def _from_template(source: Source) -> Tool:
    template = source.choice(_KNOWN if source.split == "train" else _UNKNOWN)
    name = source.choice(template.names)
    # A name of the test may also be put together at random, but then not in training.
    if source.chance(0.3) or (source.split == "test" and not source.allows(name)):
        name = _random_name(source)
    arguments = [source.choice(names) for names, _, _ in template.parameters]
    if len(set(arguments)) < len(arguments):
        arguments = [names[0] for names, _, _ in template.parameters]
    types = {a: kind for a, (_, kind, _) in zip(arguments, template.parameters, strict=True)}
    described = definition(source, name, source.choice(template.descriptions), types)

    def ask(source: Source) -> tuple[str, Arguments]:
        values = [make(source) for _, _, make in template.parameters]
        named: Arguments = dict(zip(arguments, values, strict=True))
        asked = source.wording(template.requests, template.names[0]).format(*values)
        return glossed(source, asked, named), named

    return Tool(name, described, ask)


def _random_name(source: Source) -> str:
    def make() -> str:
        verb = source.choice(_VERBS) if source.chance(0.8) else source.word(1, 2)
        topic = source.choice(_TOPICS) if source.chance(0.7) else source.word(1, 2)
        forms = (f"{verb}_{topic}", f"{topic}_{verb}", f"{topic}_function", verb + topic.capitalize(),
                 f"{topic}_tool", topic)  # fmt: skip
        name = source.weighted(forms, (6, 2, 2, 2, 1, 1))
        return "get_item" if any(word in name for word in _FORBIDDEN) else name

    while True:
        name = source.until_allowed(make)
        if source.split == "train" or name not in _KNOWN_NAMES:
            return name


def _ask_by_name(source: Source, name: str, types: Mapping[str, str]) -> tuple[str, Arguments]:
    values: Arguments = {a: value_of(source, kind, a) for a, kind in types.items()}
    return glossed(source, _asked_by_name(source, name, values), values), values


def _asked_by_name(source: Source, name: str, values: Arguments) -> str:
    said = spoken(name)
    title, topic = said.capitalize(), said.split()[-1]
    if not values:
        forms = (title, f"Please {said}.", f"What is the value of {name}()? Use the tool.", f"Call {name}.",
                 f"Can you {said}?", f"Use {name}.")  # fmt: skip
        return source.choice(forms)
    if source.chance(0.15):
        call = f"{name}({', '.join(str(v) for v in values.values())})"
        asked = source.choice(("What is the value of {}? Use the tool.", "Call {}", "Run {}.",
        "Please use {}.",
                               "What does {} return?", "Compute {}"))  # fmt: skip
        return asked.format(call)
    if len(values) == 1:
        ((argument, value),) = values.items()
        v = quoted(source, value)
        forms = (
            f"{title} {v}", f"{title} for {v}.", f"Please {said} with {argument} {v}.",
            f"What is the {topic} in {v}?", f"What is the {topic} of {v}?", f"Can you {said} for {v}?",
            f"I need to {said}: {v}", f"{v}: {said} please", f"Use the tool to {said} {v}.",
            f"{title} where the {argument} is {v}.", f"What is the {topic} for {v}?", f"Use {name} with {v}.",
        )  # fmt: skip
        return source.choice(forms)
    listed = list(values.items())
    if source.chance(0.25):
        return f"{title} {source.choice((', ', ' and ')).join(quoted(source, v) for _, v in listed)}"
    if source.chance(0.4):
        source.random.shuffle(listed)
    pair = source.choice(("{} {}", "{} is {}", "{}: {}", "the {} is {}", "{} = {}"))
    joined = source.choice((", ", " and ")).join(pair.format(a, quoted(source, v)) for a, v in listed)
    sentence = source.choice(
        ("{} with {}.", "Please {}, {}.", "{}: {}", "I want to {}; {}", "Can you {} where {}?")
    )
    return sentence.format(said if source.chance(0.5) else title, joined)


def _by_name(source: Source) -> Tool:
    name = _random_name(source)
    types: dict[str, str] = {}
    wanted = source.choice((0, 1, 1, 1, 1, 2, 2, 2, 3))
    while len(types) < wanted:
        kind = source.weighted(("string", "integer", "number"), (12, 6, 1))
        names = {"string": _STRINGS, "integer": _INTEGERS, "number": _NUMBERS}[kind]
        types[source.choice(names) if source.chance(0.85) else source.word(1, 2)] = kind
    said = spoken(name)
    title = said.capitalize()
    description = source.choice(
        (f"{title}.", f"Use this to {said}.", f"{title} for the user.", f"Tool to {said}")
    )
    if types and source.chance(0.3):
        description += f" {source.choice(('by', 'with', 'for', 'using'))} {' and '.join(types)}"
    return Tool(
        name, definition(source, name, description, types), lambda source: _ask_by_name(source, name, types)
    )


def make_tools(source: Source, count: int) -> list[Tool]:
    """So many tools of different names and parameters."""
    found: dict[str, Tool] = {}
    while len(found) < count:
        tool = _from_template(source) if source.chance(0.55) else _by_name(source)
        found.setdefault(tool.name, tool)
    return list(found.values())
