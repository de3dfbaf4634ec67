"""Runs a chat template as what it is: a program by a stranger. Jinja's sandbox keeps it from the machine;
this file keeps it from the machine's time and memory.

Before compiling, the syntax tree is rewritten so that loops, comparisons, literals and concatenations report
to a Budget; filters and methods are a list of those that chat templates need, each checked before it makes
anything large. What a template means is left to chat_template.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import BuiltinMethodType, CodeType, GeneratorType
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from bitnet.errors import ChatTemplateError

from .template_budget import ITEM_SIZE, Budget

MAX_SOURCE = 64 * 1024  # characters; the longest published templates have about 20,000
# Nodes times the depth of blocks: about 3 seconds of compiling. The longest published templates have 7,000.
MAX_COMPLEXITY = 25_000
_MAX_INTEGER_BITS = 4096
_MAX_INDENT = 64
_MAX_RANGE = 10_000
_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[^A-Za-z%]*(?:\d{4}|\*)")
_BRACE_WIDTH = re.compile(r"\{[^{}]*(?:\d{4}|\{)")


class _Metering(NodeTransformer):
    """Makes the operations that Jinja compiles to plain Python go through the sandbox."""

    def _through(self, method: str, *arguments: nodes.Expr) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)

    def _tick(self) -> nodes.ExprStmt:
        return nodes.ExprStmt(self._through("tick"))

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # A constant passes through finalize when it is written, as template data would not.
        return nodes.Const(node.data)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick())
        if node.test is not None:
            node.test = nodes.And(self._through("tick"), node.test)
        return node

    def _visit_function(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick())
        return node

    visit_Macro = visit_CallBlock = _visit_function

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through("checked", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        # {% autoescape %} makes a kind of string with methods of its own.
        raise ChatTemplateError("the chat template uses autoescape, which is for web pages")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through("concatenate", *node.nodes)

    def _visit_value(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        # A tuple is also how several variables are assigned to.
        return node if getattr(node, "ctx", "load") != "load" else self._through("checked", node)

    visit_List = visit_Tuple = visit_Dict = visit_Compare = visit_Test = _visit_value


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's part for training; here it is only a block."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance variable)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering, with its budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _Generation],
            optimized=False,  # constant folding would compute 'x' * 10**9 before there is anything to stop it
            finalize=_finalize,
        )
        self.budget = budget
        self.filters = _FILTERS
        self.globals = {
            "range": _make_range,
            "namespace": _make_namespace,
            "dict": _make_dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def tick(self) -> bool:
        self.budget.step()
        return True

    def checked(self, value: Any) -> Any:
        """`value`, if it is not too large."""
        if isinstance(value, str):
            self.budget.allow(len(value))
            # |escape and |safe give a kind of string with methods of its own.
            return value if type(value) is str else str.__str__(value)
        if isinstance(value, (list, tuple, dict)):
            self.budget.measure(value)
            self.budget.step(ITEM_SIZE * len(value))
        elif isinstance(value, GeneratorType):
            return self._checked_items(value)
        else:
            self.budget.step()
        return value

    def _checked_items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            yield self.checked(item)

    def text(self, value: Any) -> str:
        """`value` as Jinja writes it."""
        return str(self.checked(value))

    def concatenate(self, *values: Any) -> str:
        return self.join("", [self.text(value) for value in values])

    def join(self, separator: str, texts: list[str]) -> str:
        self.budget.allow(sum(map(len, texts)) + len(separator) * len(texts))
        return separator.join(texts)

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        n_places = text.count(old) if count < 0 else min(text.count(old), count)
        self.budget.allow(len(text) + n_places * len(new))
        return text.replace(old, new, count)

    def allow_format(self, template: str, arguments: Any, *, fields: str, width: re.Pattern[str]) -> None:
        """`template` may be filled in. `fields` begins a field of it; `width` finds computed and large
        widths.
        """
        if width.search(template):
            raise ChatTemplateError("the chat template formats with a computed or very large width")
        size, _ = self.budget.measure(arguments)
        self.budget.allow(len(template) + template.count(fields) * (1000 + size))

    # What Jinja calls.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self.allow_format(left, right, fields="%", width=_PERCENT_WIDTH)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    self.budget.allow(self.budget.measure(value)[0] * max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            )
            if bits > _MAX_INTEGER_BITS:
                raise ChatTemplateError("the chat template computes with very large numbers")
        return self.checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The names are Jinja's, for keyword arguments called self or context. The arguments are measured
        # together: a macro gets them as one tuple.
        __self.budget.measure([args, kwargs])
        __self.budget.step()
        if isinstance(__obj, BuiltinMethodType):
            owner = __obj.__self__
            if isinstance(owner, str):
                __self.budget.step(len(owner))
                if __obj.__name__ == "replace":
                    return __self.replace(owner, *args)
                if __obj.__name__ == "join":
                    return __self.join(owner, list(*args))
            elif isinstance(owner, dict) and __obj.__name__ != "get":
                return __self.checked(list(__obj()))  # not a view, the parts of which cannot be measured
        return __self.checked(super().call(__context, __obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.step()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        methods = _METHODS.get(type(obj))
        return super().is_safe_attribute(obj, attr, value) if methods is None else attr in methods

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        template: str = value.__self__
        fill = formatted

        def format_checked(*args: Any, **kwargs: Any) -> str:
            self.allow_format(template, [args, kwargs], fields="{", width=_BRACE_WIDTH)
            return fill(*args, **kwargs)

        return format_checked


# The methods that templates may call, by type. None of them makes more than a few times what it is given, but
# for replace, join and format, which are checked.
_TEXT_METHODS = frozenset({
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit",
    "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "title", "upper",
})  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
    int: frozenset(),
    float: frozenset(),
    bool: frozenset(),
    type(None): frozenset(),
}


@pass_context  # which also keeps Jinja from writing constants at compile time, without a budget
def _finalize(context: Context, value: Any) -> str:
    return _sandbox(context).text(value)


def _sandbox(context: Context) -> _Sandbox:
    environment = context.environment
    assert isinstance(environment, _Sandbox)
    return environment


def _raise_exception(message: object) -> None:
    raise ChatTemplateError(f"the chat template rejects the conversation: {message}")


def _strftime_now(pattern: str) -> str:
    # A width, such as %9999999d, makes the C library write that many characters.
    if not isinstance(pattern, str) or len(pattern) > 100 or re.search(r"%[^A-Za-z%]*\d", pattern):
        raise ChatTemplateError("the chat template asks for a date in an unusable format")
    return datetime.now().strftime(pattern)


def _make_range(*limits: int) -> range:
    # Filters run through one without reporting in between: 10,000 items take them some milliseconds.
    numbers = range(*limits)
    if len(numbers) > _MAX_RANGE:
        raise ChatTemplateError(f"the chat template counts to more than {_MAX_RANGE}")
    return numbers


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """Jinja's namespace without private names, which Python gives a meaning."""

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace cannot have an attribute named {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # without its contents, which are not measured


def _make_namespace(*args: Any, **kwargs: Any) -> _Namespace:
    namespace = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        namespace[name] = value
    return namespace


# Filters.

_JINJA = ImmutableSandboxedEnvironment()
_STANDARD_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe",
    "select", "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip


def _standard_filter(name: str) -> Callable[..., Any]:
    """Jinja's own, with what goes in and comes out measured."""

    @pass_context
    def measured(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        sandbox = _sandbox(context)
        value = sandbox.checked(value)
        return sandbox.checked(_JINJA.call_filter(name, value, args, kwargs, context=context))

    return measured


@pass_context
def _filter_string(context: Context, value: Any) -> str:
    return _sandbox(context).text(value)


@pass_context
def _filter_join(
    context: Context, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    sandbox = _sandbox(context)
    items = list(sandbox.checked(value))
    if attribute is not None:
        items = list(_JINJA.call_filter("map", items, (), {"attribute": attribute}, context=context))
    return sandbox.join(sandbox.text(d), [sandbox.text(item) for item in items])


@pass_context
def _filter_replace(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    sandbox = _sandbox(context)
    texts = [sandbox.text(part) for part in (value, old, new)]
    return sandbox.replace(texts[0], texts[1], texts[2], -1 if count is None else count)


@pass_context
def _filter_format(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
    sandbox = _sandbox(context)
    sandbox.allow_format(sandbox.text(value), [args, kwargs], fields="%", width=_PERCENT_WIDTH)
    return _JINJA.call_filter("format", value, args, kwargs, context=context)


@pass_context
def _filter_indent(
    context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    sandbox = _sandbox(context)
    text = sandbox.text(value)
    indentation = _indentation(width)
    sandbox.budget.allow(len(text) + (text.count("\n") + 1) * len(indentation))
    indented: str = _JINJA.call_filter("indent", text, (indentation, first, blank), context=context)
    return indented


@pass_context
def _filter_tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: not escaped for HTML, and in the script it was written in."""
    sandbox = _sandbox(context)
    size, depth = sandbox.budget.measure(value)
    if indent is not None:
        size *= 1 + depth * len(_indentation(indent))
    if separators is not None:
        size *= 1 + sum(map(len, separators))
    sandbox.budget.allow(size)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _indentation(width: int | str) -> str:
    if (width if isinstance(width, int) else len(width)) > _MAX_INDENT:
        raise ChatTemplateError(f"the chat template indents by more than {_MAX_INDENT} characters")
    return " " * width if isinstance(width, int) else width


_FILTERS: dict[str, Callable[..., Any]] = {name: _standard_filter(name) for name in _STANDARD_FILTERS} | {
    "format": _filter_format,
    "indent": _filter_indent,
    "join": _filter_join,
    "replace": _filter_replace,
    "string": _filter_string,
    "tojson": _filter_tojson,
}


_BLOCKS = (
    nodes.For, nodes.If, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.With,
    nodes.Scope, nodes.Block,
)  # fmt: skip


def _complexity(tree: nodes.Node) -> int:
    """The cost of compiling: Jinja's analysis of variables looks at a node once for each block around it."""
    complexity = 0
    rest = [(tree, 1)]
    while rest:
        node, depth = rest.pop()
        complexity += depth
        rest.extend((child, depth + isinstance(node, _BLOCKS)) for child in node.iter_child_nodes())
    return complexity


class SandboxedTemplate:
    """A compiled template. Immutable; may be rendered by several threads at once."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError if `source` is no template, too long, or uses what is not allowed."""
        if len(source) > MAX_SOURCE:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are allowed"
            )
        sandbox = _Sandbox(Budget(0))
        try:
            tree = sandbox.parse(source)
            if _complexity(tree) > MAX_COMPLEXITY:
                raise ChatTemplateError("the chat template is too complex to be compiled")
            self.variables: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
            _Metering().visit(tree)
            tree.set_environment(sandbox)
            self._code: CodeType = sandbox.compile(tree)
        except Exception as error:  # a hostile source can make the parser and the compiler raise anything
            raise _template_error("cannot be compiled", error) from error

    def render(self, variables: Mapping[str, Any], *, input_size: int) -> str:
        """The text. `variables` must be plain JSON values; `input_size` is their size in characters.

        Raises ChatTemplateError if the template fails, rejects its input or exceeds a limit.
        """
        sandbox = _Sandbox(Budget(input_size))
        template = Template.from_code(sandbox, self._code, sandbox.globals)
        pieces: list[str] = []
        n_characters = 0
        try:
            for piece in template.generate(**variables):
                pieces.append(piece)
                n_characters += len(piece)
                if n_characters > sandbox.budget.max_output:
                    raise ChatTemplateError(
                        f"the chat template writes more than {sandbox.budget.max_output} characters"
                    )
        except Exception as error:  # the template is a program: it can raise anything
            raise _template_error("failed", error) from error
        return "".join(pieces)


def _template_error(what: str, error: Exception) -> ChatTemplateError:
    if isinstance(error, ChatTemplateError):
        return error
    message = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return ChatTemplateError(f"the chat template {what}: {str(message)[:500]}")
