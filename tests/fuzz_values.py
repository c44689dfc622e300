"""Values for fields of requests that may break something behind the gateway."""

from __future__ import annotations

from typing import Any

# One value per line would fill pages.
# fmt: off
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 16, 17, 20, 21, 100, 10_000, 2**15, 2**31 - 1, 2**31, -(2**31) - 1, 2**32,
    2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30, 10**300, -0.0, 0.5, -0.5,
    1.0, 1.5, 1e-7, 1e-45, 1e-320, 1e38, 1e39, 1e308, -1e308, float("nan"), float("inf"),
    float("-inf"),
]
TEXTS: list[Any] = [
    "", " ", "a", "\x00", "a\x00b", "\n", "\r\n", "\u2028", "\ufeff", "\ufffd", "\ufffe",
    "\ud800", "a\udfffb", "é", "e\u0301", "🙂", "👩‍👩‍👧", "\u202eabc", "ﷺ", "1", "true", "null",
    "NaN", "1e5", "[]", "{}", "{{ 7*7 }}", "{% for x in y %}", "{{ ''.__class__.__mro__ }}",
    "../../etc/passwd", "<|im_end|>", "</answer>", "<s>", "x" * 3000, "🙂" * 500, "a b " * 400,
    "'; DROP TABLE x; --", "%s%n%x", "http://127.0.0.1:1/", "data:;base64,AAAA", "gASVAAAA",
]
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [{}], [None], {"": None}, [1], ["a"], ["", "b"],
    [1, "a", None], [[1], [2]], {"a": 1}, {"a": {"b": [1]}}, ["\ud800"], {"\ud800": "\ud800"},
    [0] * 3000, ["a"] * 3000, dict.fromkeys("abcdefgh", 1),
]
# around the sizes of vocabularies, including that of the tests' model
TOKENS: list[int] = [
    -(2**63), -2, -1, 0, 1, 2, 3, 191, 192, 193, 255, 256, 999, 1000, 31_999, 32_000, 2**17,
    2**31, 2**40, 2**63, 2**70,
]
ROLES: list[Any] = [
    "user", "system", "assistant", "tool", "developer", "function", "critic", "", "USER", "\x00",
    None, 5, [], {}, "x" * 500,
]
SCHEMAS: list[Any] = [
    {}, True, False, [], "", "{", "{}", "[]", "null", {"type": "object"}, {"type": "nonsense"},
    {"type": ["string", "null"]}, {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "a{99999999}"},
    {"type": "string", "minLength": 10**9}, {"type": "string", "minLength": 5, "maxLength": 1},
    {"type": "integer", "minimum": 1e308}, {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "number", "multipleOf": 0}, {"type": "array", "minItems": 10**9}, {"enum": []},
    {"enum": ["a", 1, None, {}]}, {"const": {"a": []}}, {"$ref": "#"}, {"$ref": "#/nowhere"},
    {"$ref": "http://127.0.0.1:1/"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"allOf": []}, {"anyOf": [False]}, {"oneOf": [{}, {}]}, {"not": {}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "object", "required": ["absent"]},
    {"type": "object", "properties": {"\x00": {}, "é": {}}},
    {"format": "date-time", "type": "string"}, {"type": "object", "patternProperties": {"(": {}}},
    {"type": "object", "minProperties": 10**6},
]
REGEXES: list[Any] = [
    "", "a*", "(", ")", "[", "[]", "[z-a]", "a{2,1}", "a{1000000000}", "(a{1000}){1000}", "(a*)*",
    "(?=a)", "(?<!a)b", r"\1", r"\p{L}+", r"\x", "\\", "^$", "a" * 5000,
    "(" * 2000 + "a" + ")" * 2000, "|" * 500, "[^\x00]", "é+", "🙂{3}", "(?i)a", "a|", "\n", "$^",
    None, 5,
]
GRAMMARS: list[Any] = [
    "", " ", "x", "root ::= root", "root ::= a\na ::= b\nb ::= root", 'root ::= "a"',
    'root ::= ""', "root ::= ", "root ::= absent", '::= "a"', 'root ::= "a" root',
    'root ::= root "a"', 'root ::= "a', "root ::= [", "root ::= [z-a]", 'root ::= "a"{1000000}',
    'start: "a"', "start: start", 'root ::= "\\xff"', "root ::= " + "(" * 500 + '"a"' + ")" * 500,
    "?start: /(/", "# only a comment", 'root ::= "a" | ' * 200, None, 5, [],
]
TAGS: list[Any] = [
    "", "{}", "[]", "{", '{"type": "structural_tag"}', '{"structures": [], "triggers": []}',
    '{"structures": [{"begin": "", "schema": {}, "end": ""}], "triggers": [""]}',
    '{"type": "structural_tag", "format": {"type": "x"}}',
    '{"type": "structural_tag", "format": {"type": "sequence", "elements": []}}',
    '{"structures": [{"begin": "a"}], "triggers": ["b"]}', {}, 5,
]
CHOICES: list[Any] = [
    [], [""], ["a"] * 500, ["a", "a"], ["\x00"], ["🙂"], ["a" * 5000], "a", [1], [None], [["a"]],
    {"a": 1},
]
STRUCTURED_OUTPUTS: list[Any] = [
    1.5, "", [], 0, False, "json", [{}], {"x": 1}, {"json": None},
    {"json_object": True, "whitespace_pattern": "("}, {"json_object": False},
    {"json_object": True}, {"regex": "a", "choice": ["b"]},
    {"regex": "a", "_backend": "outlines"}, {"json": {}, "disable_any_whitespace": "x"},
]
TOOLS: list[Any] = [
    [], [{}], [{"type": "function"}], [{"type": "function", "function": {}}],
    [{"type": "function", "function": {"name": ""}}],
    [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    [{"type": "x", "function": {"name": "f"}}],
    [{"type": "function", "function": {"name": "f" * 5000, "description": "\ud800"}}], "f",
    {"name": "f"},
    [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "x"}}}],
]
TOOL_CHOICES: list[Any] = [
    "auto", "none", "required", "x", {"type": "function", "function": {"name": "f"}},
    {"type": "function", "function": {"name": "g"}}, {"type": "function"}, [], 1,
]
# fields that hold a number
COUNTS: list[str] = [
    "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens", "logprobs",
    "top_logprobs", "prompt_logprobs", "top_k", "seed", "priority", "truncate_prompt_tokens",
    "thinking_token_budget", "stream_interval", "prompt_logprob_start", "temperature", "top_p",
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty",
    "routed_experts_prompt_start",
]
TRANSFERS: list[Any] = [
    {}, {"do_remote_decode": True},
    {"do_remote_prefill": True, "remote_block_ids": [1], "remote_host": "x"}, {"x": None}, 5,
]
# several fields at once, or a field with a single value
COMBINATIONS: list[dict[str, Any]] = [
    {"structured_outputs": {"regex": "a+"}, "min_tokens": 3, "stop": ["a"], "ignore_eos": True},
    {"stream": True, "n": 3},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"use_beam_search": True, "n": 4}, {"use_beam_search": True, "stream": True},
    {"use_beam_search": True, "temperature": -1},
    {"use_beam_search": True, "n": 2, "logprobs": 2},
    {"use_beam_search": True, "n": 16, "echo": True}, {"continue_final_message": True},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"add_generation_prompt": False}, {"add_special_tokens": True}, {"echo": True},
    {"echo": True, "max_tokens": 0}, {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"echo": True, "stream": True}, {"prompt_embeds": "AAAA", "prompt": ""},
    {"prompt_is_token_ids": [True]}, {"mm_processor_kwargs": {"x": 1}},
    {"lora_request": {"lora_name": "x", "lora_int_id": 1, "lora_path": "/"}},
    {"logits_processors": ["os.system"]}, {"return_token_ids": True},
    {"return_tokens_as_token_ids": True, "logprobs": 1}, {"include_reasoning": "x"},
    {"prompt": "a", "messages": []},
]
PATHS: list[str] = [
    "/", "/v1", "/v1/", "/v1/models", "/v1/models/", "/v1/models/x", "/v1/models/%00",
    "/v1/models/%ff%fe", "/v1/models/..%2f..", "/v1/completions/", "//v1/completions",
    "/V1/completions", "/v1/completions?stream=true", "/v1/%63ompletions", "/v1/responses",
    "/v1/embeddings", "/tokenize", "/detokenize", "/collective_rpc", "/reset_prefix_cache",
    "/sleep", "/update_weights", "/metrics", "/docs", "/openapi.json", "/-/routes", "/-/healthz",
    "/health", "/ping", "/invocations", "/v1/models/" + "a" * 2000,
]
HEADERS: list[dict[str, str]] = [
    {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-16"},
    {"content-type": "a" * 3000}, {"content-encoding": "gzip"}, {"expect": "100-continue"},
    {"x-forwarded-for": "203.0.113.7, \xe9"}, {"origin": "https://evil.example.org"},
    {"origin": "null"}, {"x-request-id": "\xff"}, {"x-request-timeout-seconds": "-1"},
    {"x-request-timeout-seconds": "\xff"}, {"serve_multiplexed_model_id": "\xff"},
    {"x-session-id": "\xff"}, {"x-data-parallel-rank": "7"}, {"x-vllm-priority": "9" * 30},
    {"traceparent": "\xff"}, {"x-a": "b" * 40_000}, {f"x-{number}": "" for number in range(200)},
    {"upgrade": "websocket", "connection": "upgrade"}, {"host": "a b"},
    {"accept-encoding": "\xff"}, {"accept": "\xff"}, {"endpoint-load-metrics-format": "json"},
    {"cookie": "\xff=;"},
]
VALUES: dict[str, list[Any]] = {
    "response_format": [
        {}, {"type": "x"}, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"},
        {"type": "structural_tag"}, "json",
    ],
    "logit_bias": [
        {"a": 1}, {"": 1}, {"1": "x"}, {"1": None}, {"1": 1e308}, {"1": 1000}, {"1.5": 1},
        {" 1": 1}, {"٣": 1}, {str(token): -100 for token in range(64)},
    ],
    "stop": [
        "", [""], ["a"] * 4000, ["a", 5], [None], [[]], {"a": 1}, "\x00", ["a" * 10_000], "🙂", 5,
        True,
    ],
    "bad_words": [["", " "], ["a"] * 1000, [5], "a", ["\x00"], ["🙂"], [" a", "a "], ["a b c"]],
    "stream": ["true", 1, 0, None, [], {}],
    "stream_options": [{}, {"include_usage": "x"}, {"x": 1}, 5, [], {"include_usage": True}],
    "cache_salt": ["", "x", "x" * 100_000, 5, "\ud800", "é"],
    "request_id": ["\ud800", "", "same", "../x", "x" * 10_000, "\x00", 5, None, "a\nb"],
    "session_id": ["", "x" * 10_000, "\x00", 5],
    "vllm_xargs": [
        {}, {"a": 1}, {"a": "x"}, {"a": [1, "b"]}, {"a": {}}, {"a": None}, {"session_id": 5},
        {"kv_transfer_params": 1}, {"": 1e308}, 5,
    ],
    "kv_transfer_params": TRANSFERS,
    "ec_transfer_params": TRANSFERS,
    "chat_template_kwargs": [
        {"chat_template": "{{ 1 }}"}, {"tokenize": True}, {"messages": []},
        {"add_generation_prompt": 5}, {"return_tensors": "pt"}, {"x": 1},
        {"padding": True, "max_length": 10**9}, {"conversation": 1}, {"tools": 5},
        {"documents": 5}, {"return_dict": True}, {"": 1}, 5, [],
        {"truncation": True, "max_length": 1}, {"continue_final_message": True},
        {"tokenizer_kwargs": {"x": 1}}, {"self": 1},
    ],
    "chat_template": [
        "", "x", "{{ ''.__class__ }}", "{% for i in range(99999999) %}x{% endfor %}", "{{",
        "{{ 1/0 }}", "{{ messages[99].x.y }}",
    ],
    "documents": [[], [{}], [{"a": "b"}], [5], "x"],
    "suffix": ["x", ""],
    "repetition_detection": [
        {}, {"max_pattern_size": 10**9, "min_count": 0}, {"max_pattern_size": -1},
        {"max_pattern_size": 3, "min_count": 2}, 5,
    ],
    "prompt_embeds": ["gASVAAAA", ["x"], "", [[0.1]], 5],
    "reasoning_effort": ["high", "none", "x", 5],
    "model": [None, "", 5, [], "x", "\ud800", "x" * 10_000],
    "structured_outputs": STRUCTURED_OUTPUTS,
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICES,
}
# fmt: on
