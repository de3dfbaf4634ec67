from __future__ import annotations

from typing import Any


class UsageReportingMixin:
    SUPPORTS_USAGE_REPORTING = True

    @staticmethod
    def _take_usage_sink(kwargs: dict[str, Any]) -> dict[str, Any] | None:
        sink: dict[str, Any] | None = kwargs.pop("usage_sink", None)
        return sink

    def _report_usage(
        self,
        sink: dict[str, Any] | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        reasoning_tokens: int | None = None,
        cached_prompt_tokens: int | None = None,
    ) -> None:
        if sink is not None:
            n_prompt, n_completion = prompt_tokens or 0, completion_tokens or 0
            sink.update(
                prompt_tokens=n_prompt,
                completion_tokens=n_completion,
                total_tokens=n_prompt + n_completion,
                reasoning_tokens=reasoning_tokens,
                cached_prompt_tokens=cached_prompt_tokens,
                model=getattr(self, "model", None),
                provider=getattr(self, "provider_name", None),
                reported=True,
            )
