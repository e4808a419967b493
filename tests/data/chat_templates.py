"""Chat templates as models ship them, twins of them with generation marks, a tokenizer that knows their marks."""

from typing import Any

from qra_bo.finetune.data.load import byte_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
         "<end_of_turn>", "[INST]", "[/INST]")

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
'}}{# generation #}{{ message['content'] + '<|im_end|>' + '
' }}{# end #}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + \
message['role'] + '<|end_header_id|>

' }}{# generation #}{{ message['content'] | trim + '<|eot_id|>' }}{# end #}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '
' }}{# generation #}{{ message['content'] | trim + '<end_of_turn>
' }}{# end #}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model
' }}{% endif %}"""

MISTRAL = """{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}\
{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}\
{%- for message in turns %}{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}\
{{- '[INST] ' + system + '

' + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}\
{%- elif message['role'] == 'assistant' %}{# generation #}{{- ' ' + message['content'] + eos_token }}{# end #}\
{%- endif %}{%- endfor %}"""
"""The system's message stands in the last message where that is a user's: texts of prefixes are no prefixes."""

PHI = """{% for message in messages %}{{ '<|' + message['role'] + '|>
' + message['content'] + '<|end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
"""An end token closes the whole text."""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}

THINKING = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' }}{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}\
{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
<think>' }}{% endif %}"""
"""Thoughts of earlier turns are left out, and an answer begins with a mark that some conversations lack."""

TOOLS = """{% if tools %}{{ '<|im_start|>system
' }}{% for tool in tools %}{{ tool | tojson + '
' }}{% endfor %}{{ '<|im_end|>
' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] }}{% for call in message.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}\
{% endfor %}{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def marked(template: str) -> str:
    """Return a template with generation marks around the answers of the assistant."""
    test = "{% if message['role'] == 'assistant' %}"
    first, last = template.index("{# generation #}"), template.index("{# end #}")
    inner = template[first + len("{# generation #}"):last]
    return (template[:first] + f"{test}{{% generation %}}{inner}{{% endgeneration %}}{{% else %}}{inner}{{% endif %}}"
            + template[last + len("{# end #}"):])


def chat_tokenizer(template: str | None) -> Any:
    """Return a tokenizer of bytes with ``template`` and the special tokens of all templates here."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(MARKS)})
    tokenizer.chat_template = template
    return tokenizer
