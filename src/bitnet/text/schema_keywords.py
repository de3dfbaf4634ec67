"""What json_schema.py knows of each keyword of JSON Schema (draft 2020-12): data, no logic."""

from __future__ import annotations

TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")

# Keyword -> what its value must be.
KEYWORDS = {
    "$ref": "reference",
    "allOf": "schemas",
    "anyOf": "schemas",
    "oneOf": "schemas",
    "const": "value",
    "enum": "values",
    "type": "type",
    "items": "schema",
    "prefixItems": "schemas",
    "minItems": "count",
    "maxItems": "count",
    "uniqueItems": "must be false",
    "properties": "named schemas",
    "patternProperties": "named schemas",
    "additionalProperties": "schema",
    "required": "names",
    "minProperties": "count",
    "maxProperties": "count",
    "minLength": "count",
    "maxLength": "count",
    "pattern": "text",
    "format": "text",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "number",
}

# They describe, and forbid nothing. `discriminator` (OpenAPI) only says how to read a oneOf.
ANNOTATIONS = frozenset({
    "$schema", "$comment", "$defs", "definitions", "title", "description", "default", "example", "examples",
    "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator",
})  # fmt: skip

# Part of the standard, but no grammar can say it.
KNOWN_UNSUPPORTED = frozenset({
    "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "not", "if", "then", "else", "contains",
    "minContains", "maxContains", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "additionalItems", "contentSchema",
})  # fmt: skip

# A schema with one of these and no type is meant for this type.
IMPLIED_TYPES = {
    **dict.fromkeys(
        (
            "properties",
            "patternProperties",
            "additionalProperties",
            "required",
            "minProperties",
            "maxProperties",
        ),
        "object",
    ),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}

MAX_MULTIPLE_OF = 1000  # llguidance does not come back from compiling 99,999,999

# Those that llguidance has a pattern for.
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

_YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    rf"|(?:0[13578]|1[02])-31)|{_LEAP}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
# RFC 3339 as Python's datetime reads it: days that exist, no leap seconds, microseconds at most.
EXACT_DATES = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
