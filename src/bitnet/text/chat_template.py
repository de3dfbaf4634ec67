"""ChatTemplate: a conversation to the token ids of a prompt.

Chooses the template, hands it plain data in which nothing can pass for a control token, and parses what it
wrote. Running it safely is left to template_sandbox.py, tools and their answers to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bitnet.errors import ChatTemplateError, ValidationError

from .builtin_templates import choose_template
from .content_guard import ContentGuard, choose_mark
from .template_sandbox import SandboxedTemplate
from .tokenizer import Tokenizer, check_unicode

ROLES = ("system", "user", "assistant", "tool")
_MAX_DEPTH = 64  # of tool schemas and arguments
_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
)


class ChatTemplate:
    """The chat format of one model. Immutable after construction; safe to share between threads.

    A model without a usable template still loads: `problem` then says what is wrong, and rendering raises it.
    `repairs` tells, in sentences for a log, what was wrong with the file and what was done about it.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        """`source`: a Jinja template, or None for a model that has none."""
        self.source = source
        self.problem: str | None = None
        self.repairs: list[str] = []
        self._tokenizer = tokenizer
        self._guard = ContentGuard(tokenizer.control_texts)
        self._template: SandboxedTemplate | None = None
        if source is None:
            self.problem = (
                "this model has no chat template: it is a base model, which continues text. "
                "Use generate() with a prompt instead of chat messages"
            )
        else:
            try:
                self._template = SandboxedTemplate(source)
            except ChatTemplateError as error:
                self.problem = str(error)
        named = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "pad_token": tokenizer.pad_id,
            "unk_token": tokenizer.unk_id,
        }
        self._token_names = {name: tokenizer.token_text(i) for name, i in named.items() if i is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The file's template, or the right one where the file has none or a placeholder.

        Raises ModelFileError if `tokenizer.chat_template` is not a string.
        """
        choice = choose_template(metadata, tokenizer)
        template = cls(choice.source, tokenizer)
        if choice.repair is not None:
            template.repairs.append(choice.repair)
        return template

    def end_of_turn(self) -> int | None:
        """The control token that the template writes behind the text of an assistant, if it does."""
        probe = "END-OF-TURN-PROBE"
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}]
        try:
            _, found, rest = self.render_text(messages, add_generation_prompt=False).rpartition(probe)
        except (ChatTemplateError, ValidationError):
            return None
        first = self._tokenizer.split_special(rest.lstrip(), controls=True)[:1]
        return first[0] if found and first and isinstance(first[0], int) else None

    @property
    def supports_tools(self) -> bool:
        """Whether the template itself tells the model of tools; if not, `tools` has no effect."""
        return self._template is not None and "tools" in self._template.variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """The prompt's token ids, with BOS if the model wants it.

        `messages` have a role (system, user, assistant, tool), a content (str or None) and whatever else the
        template reads; `extra` are further variables for it. In none of them can the name of a control token
        become that token. Raises ChatTemplateError if there is no usable template, it rejects the messages,
        or it exceeds a limit, and ValidationError for text with lone surrogates.
        """
        text, mark = self._render(messages, add_generation_prompt, tools, extra)
        ids: list[int] = []
        for part in self._tokenizer.split_special(text, controls=True):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._tokenizer.encode(part.replace(mark, ""), add_special=False)
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        return ids

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """What the template writes, for showing: encoding it again would let messages inject controls."""
        text, mark = self._render(messages, add_generation_prompt, tools, extra)
        return text.replace(mark, "")

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any],
    ) -> tuple[str, str]:
        """The template's output, and the mark that keeps message text in it from being parsed."""
        if self._template is None:
            raise ChatTemplateError(self.problem or "this model has no chat template")
        shadowed = sorted(_RESERVED.intersection(extra))
        if shadowed:
            raise ChatTemplateError(
                f"{shadowed[0]!r} cannot be given as an extra variable of the chat template"
            )
        if not messages:
            raise ChatTemplateError("there are no messages to render")
        given = {
            "messages": [_checked_message(message) for message in messages],
            "tools": tools or None,
            **extra,
        }
        texts: list[str] = []
        n_values = 0

        def collect(text: str) -> str:
            nonlocal n_values
            n_values += 1
            check_unicode(text)
            texts.append(text)
            return text

        _rebuild(given, collect)
        mark = choose_mark(texts)
        variables = _rebuild(given, lambda text: self._guard.protect(text, mark))
        for message, original in zip(variables["messages"], given["messages"], strict=True):
            # One of ROLES, of which templates make the names of control tokens: not to be marked.
            message["role"] = original["role"]
        rendered = self._template.render(
            {**variables, **self._token_names, "add_generation_prompt": add_generation_prompt},
            input_size=n_values + sum(map(len, texts)),
        )
        return rendered, mark


def _checked_message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ChatTemplateError(f"a message has the role {role!r}; known roles: {', '.join(ROLES)}")
    if content is not None and not isinstance(content, str):
        raise ChatTemplateError(f"the content of a message must be text, not {type(content).__name__}")
    # Templates ask whether a key is there at all, and write None as "None".
    present = {
        key: value for key, value in message.items() if value is not None and value != [] and value != ()
    }
    return {**present, "role": ROLES[ROLES.index(role)], "content": content or ""}


def _rebuild(value: Any, on_text: Callable[[str], str], depth: int = 0) -> Any:
    """A copy of plain JSON types, each text through `on_text`.

    Raises ChatTemplateError for other types, which bring methods that no sandbox knows, and for deep nesting.
    """
    if depth > _MAX_DEPTH:
        raise ChatTemplateError(f"the messages or tools are nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return on_text(str.__str__(value))
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_rebuild(k, on_text, depth + 1): _rebuild(v, on_text, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rebuild(item, on_text, depth + 1) for item in value]
    raise ChatTemplateError(
        f"a chat template cannot be given a value of type {type(value).__name__}; use plain JSON values"
    )
