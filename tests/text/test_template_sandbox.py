"""Templates do what they do elsewhere; hostile ones stop with an error before they cost time or memory."""

from __future__ import annotations

import datetime
import time
import tracemalloc
from typing import Any

import pytest

from bitnet.errors import ChatTemplateError
from bitnet.text.template_sandbox import MAX_SOURCE, SandboxedTemplate


def render(source: str, **variables: Any) -> str:
    return SandboxedTemplate(source).render(variables, input_size=100)


MESSAGES = [{"role": "user", "content": " Hi <b> é\n"}, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for m in messages %}\n  {{ m.role|capitalize }}: {{ m['content']|trim }}\n{% endfor %}",
            "  User: Hi <b> é\n  Assistant: ok\n",
        ),
        (
            "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
            " Hi <b> é\n",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{% endfor %}",
            "2",
        ),
        ("{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% else %}none{% endfor %}", "ok"),
        ("{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}{{ messages[1:]|length }}", "au1"),
        (
            "{% set ns = namespace(n=0) %}{% for m in 'ab' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{% macro f(x, y='!') %}[{{ x ~ y }}]{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "[a!][b?]"),
        ("{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}", "<in>"),
        ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}", "a2B"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
        ("{{ {'a': 'é<', 'b': [1, none, true]}|tojson }}", '{"a": "é<", "b": [1, null, true]}'),
        ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ 'é'|tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ messages|map(attribute='role')|join(', ') }}", "user, assistant"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ messages|rejectattr('role', 'eq', 'user')|map(attribute='content')|first }}", "ok"),
        (
            "{{ 'a-b-c'.split('-')|last }}{{ 'abc'.replace('b', 'x') }}{{ 'abc'|replace('c', 'y', 1) }}",
            "caxcaby",
        ),
        ("{{ 'x</think>y'.split('</think>')[-1].lstrip('\n') }}{{ '-'.join(['a', 'b']) }}", "ya-b"),
        ("{{ '%s=%d' % ('a', 3) }}{{ '{}:{}'.format(1, 'b') }}{{ '%s!'|format('c') }}", "a=31:bc!"),
        ("{{ 'a\nb'|indent(2) }}{{ 'a\nb'|indent(1, true) }}", "a\n  b a\n b"),
        (
            "{{ undefined_thing }}|{{ none }}|{{ true }}|{{ 1.5 }}|{{ [1, 'a'] }}|{{ 'a' if false }}",
            "|None|True|1.5|[1, 'a']|",
        ),
        ("{{ missing is defined }}{{ messages is string }}{{ messages[0] is mapping }}", "FalseFalseTrue"),
        ("{{ 'a' in 'abc' and 3 not in [1, 2] and 2 * 3 == 6 and 7 // 2 == 3 and 2 ** 3 == 8 }}", "True"),
        (
            "{{ dict(a=1)['a'] }}{{ range(3)|list }}{{ (1, 2)[1] }}{% set a, b = 3, 4 %}{{ a }}{{ b }}",
            "1[0, 1, 2]234",
        ),
        ("{% generation %}hi{% endgeneration %}", "hi"),
        ("{{ 'December 2023 %s' % 'x' }}{{ ' {} in 2024'.format('y') }}", "December 2023 x y in 2024"),
        ("{{ 'a,b'.split(',')[:1] }}{{ 'abc'[::-1] }}{{ 'a' in {'a': 1}.keys() }}", "['a']cbaTrue"),
        ("{{ '<'|e + '<' }}{{ [1, 2]|reverse|list }}{{ 'ab'|reverse }}", "&lt;<[2, 1]ba"),
        ("a\n{% if true %}\nb\n{% endif %}\n  {%- if true -%} c {%- endif %}\n", "a\nb\nc"),
    ],
)
def test_what_templates_use(source: str, expected: str) -> None:
    assert render(source, messages=MESSAGES) == expected


def test_the_date() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == datetime.datetime.now().strftime("%d %b %Y")


def test_a_template_can_reject_its_input() -> None:
    with pytest.raises(ChatTemplateError, match="rejects the conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"


def growing(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}",
    "loops that select nothing": (
        "{% for i in range(9000) %}{% for j in range(9000) if j < 0 %}{% endfor %}{% endfor %}"
    ),
    "string repetition": "{{ 'a' * 10**9 }}",
    "string repetition reversed": "{{ 10**9 * 'a' }}",
    "string repetition at compile time": "{% set x = 'a' * 1000000000 %}",
    "list repetition": "{{ [0] * 10**9 }}",
    "powers": "{{ 10 ** (10 ** 5) }}",
    "growing numbers": growing("9", "ns.x * ns.x"),
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format computed width": "{{ '{:{}}'.format(1, 10**9) }}",
    "format repetition": "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "center": "{{ 'x'|center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'x'|indent(10**9, true) }}",
    "json indent": "{{ [1]|tojson(indent=10**9) }}",
    "json separators": "{{ range(9000)|list|tojson(separators=('x' * 99999, ':')) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "to_bytes": "{{ (5).to_bytes(10**9) }}",
    "doubling with ~": growing("'a'", "ns.x ~ ns.x"),
    "doubling with +": growing("'a'", "ns.x + ns.x"),
    "doubling with format": growing("'a'", "'%s%s' % (ns.x, ns.x)"),
    "doubling with join": growing("'a'", "[ns.x, ns.x]|join"),
    "doubling with str.join": growing("'a'", "''.join([ns.x, ns.x])"),
    "doubling with replace": growing("'a'", "ns.x|replace('a', 'aa')"),
    "doubling with str.replace": growing("'a'", "ns.x.replace('a', 'aa')"),
    "inserting everywhere": growing("'a'", "ns.x.replace('', 'aa')"),
    "doubling with set": growing("'a'", "y").replace(
        "{% set ns.x", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x"
    ),
    "doubling lists": growing("['a']", "ns.x + ns.x"),
    "lists of lists": growing("['a']", "[ns.x, ns.x]"),
    "dicts of dicts": growing("['a']", "{'a': ns.x, 'b': ns.x}"),
    "dict calls": growing("['a']", "dict(a=ns.x, b=ns.x)"),
    "slices of lists": growing("['a']", "(ns.x + ns.x)[:]"),
    "many slices": "{% set x = 'a' * 900000 %}" + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(900)),
    "views of dicts": growing("{'a': 1}", "{'a': [ns.x.values(), ns.x.values()]}"),
    "macro arguments": (
        "{% set ns = namespace(x=[1]) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}"
    ),
    "deep lists": growing("[]", "[ns.x]").replace("60", "9999"),
    "long lists": "{% set x = 'a,' * 50000 %}" + "{{ x.split(',')|length }}" * 900,
    "escaped strings": "{{ ('x'|e).ljust(10**9) }}",
    "safe strings": "{{ ('x'|safe).zfill(10**9) }}",
    "autoescape": "{% autoescape true %}{% set x %}a{% endset %}{{ x.ljust(10**9) }}{% endautoescape %}",
    "macros calling twice": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "macros calling to a depth": "{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n }}{% endmacro %}{{ f(50) }}",
    "recursive loops": "{% for a in [[1]] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}",
    "blocks that include themselves": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "large defaults": "{{ range(9000)|map('default', 'x' * 900000, true)|list|sort }}",
    "large missing attributes": "{{ range(9000)|map(attribute='x', default='x' * 900000)|list|sort }}",
    "large replacements": "{{ range(9000)|map('string')|map('replace', '1', 'x' * 100000)|list }}",
    "long comparisons": (
        "{% set a = 'b' * 900000 %}{% for i in range(9999) %}{{ a ~ 'x' == a ~ 'y' }}{% endfor %}"
    ),
    "long constants": "{% set x %}{% for i in range(9999) %}" + "y" * 50000 + "{% endfor %}{% endset %}",
    "long output": "{% for i in range(9999) %}" + "y" * 50000 + "{% endfor %}",
    "date width": "{{ strftime_now('%999999999d') }}",
    "long source": "x" * (MAX_SOURCE + 1),
    "long expression": "{{ " + "a+" * 30000 + "a }}",
    "deep expression": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "deep negation": "{{ " + "not " * 9000 + "1 }}",
    "deep blocks": "{% for i in x %}" * 400 + "{% if i %}{% endif %}" * 400 + "{% endfor %}" * 400,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_stop(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(ChatTemplateError) as caught:
        render(source)
    assert time.thread_time() - start < 2.5
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "name",
    [
        "string repetition",
        "list repetition",
        "doubling with ~",
        "lists of lists",
        "large defaults",
        "format repetition",
    ],
)
def test_hostile_templates_do_not_eat_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError):
            render(HOSTILE[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ namespace(__init__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ dict.__subclasses__() }}",
        "{{ 'x'.encode() }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ open('/etc/passwd') }}",
        "{{ 1 / 0 }}",
        "{{ missing.attribute }}",
        "{% endfor %}",
        "{{",
        "{{ 'a'|nofilter }}",
    ],
)
def test_what_templates_may_not_do(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source, messages=[dict(m) for m in MESSAGES])


@pytest.mark.parametrize(
    "source",
    [
        "{{ range.__self__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ 'x'.__class__ }}",
        "{{ 'x'['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    ],
)
def test_what_templates_cannot_see(source: str) -> None:
    assert render(source) == ""


def test_input_is_not_changed() -> None:
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(ChatTemplateError):
        render("{{ messages.append(1) }}", messages=messages)
    assert messages == MESSAGES


def test_limits_grow_with_the_input() -> None:
    """A long document is no attack."""
    document = "word " * 1_000_000
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content|trim ~ '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": document}]
    text = SandboxedTemplate(source).render({"messages": messages}, input_size=len(document))
    assert text == "user: " + document.strip() + "\n"
    many = [{"role": "user", "content": "word"}] * 3000
    assert SandboxedTemplate(source).render({"messages": many}, input_size=30_000) == "user: word\n" * 3000


def test_one_template_renders_again_and_again() -> None:
    """The budget is of one rendering."""
    template = SandboxedTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}")
    expected = "".join(map(str, range(9000)))
    for _ in range(5):
        assert template.render({}, input_size=0) == expected
