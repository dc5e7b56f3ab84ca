"""Chat templates: the forms in which well-known models are published, and bombs."""

from __future__ import annotations

# The forms that models are published with, by family. All of them must work.
PUBLISHED: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
        " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
        " }}{% endif %}"
    ),
    "chatml with a default system message": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{"
        " '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>'"
        " + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if"
        " add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set"
        " system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set"
        " system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role']"
        " == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate"
        " user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message"
        " != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' +"
        " message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if"
        " message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{%"
        " elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif"
        " %}{% endfor %}"
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
        " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif"
        " %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{"
        " '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama 3.1 with dates": (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul"
        " 2024' %}\n{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set"
        " system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%-"
        " else %}\n    {%- set system_message = '' %}\n{%- endif %}\n{{-"
        " '<|start_header_id|>system<|end_header_id|>\n\n' }}\n{%- if tools is defined and tools is"
        " not none %}\n    {{- 'Environment: ipython\n' }}\n{%- endif %}\n{{- 'Today Date: ' +"
        " date_string + '\n\n' }}\n{{- system_message }}\n{{- '<|eot_id|>' }}\n{%- for message in"
        " messages %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+"
        " message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}"
        "\n    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' +"
        " message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{"
        " message['content'] + eos_token}}{% elif message['role'] == 'system' %}{{ '[INST] ' +"
        " message['content'] + ' [/INST]' }}{% else %}{{ raise_exception('Only user and assistant"
        " roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "mistral with a namespace": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']"
        " %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%-"
        " endif %}{%- set ns = namespace(index=0) %}{%- for message in loop_messages %}{%- if"
        " (message['role'] == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('Roles must"
        " alternate') }}{%- endif %}{%- set ns.index = ns.index + 1 %}{%- endfor %}{{- bos_token }}{%-"
        " for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if loop.last and"
        " system_message is defined %}{{- '[INST] ' + system_message + '\n\n' + message['content'] +"
        " '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else"
        " %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' +"
        " message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n'"
        " + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{"
        " '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and"
        " add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set"
        " role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' +"
        " role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if"
        " add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "phi 3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' +"
        " message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' +"
        " message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>"
        "\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt"
        " %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "qwen 2.5 with tools": (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {%- if messages[0]['role'] =="
        " 'system' %}\n        {{- messages[0]['content'] }}\n    {%- else %}\n        {{- 'You are"
        ' helpful.\' }}\n    {%- endif %}\n    {{- "\\n\\n# Tools\\n<tools>" }}\n    {%- for tool in'
        ' tools %}\n        {{- "\\n" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{-'
        " \"\\n</tools><|im_end|>\\n\" }}\n{%- else %}\n    {%- if messages[0]['role'] == 'system'"
        " %}\n        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
        "\n    {%- else %}\n        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}"
        "\n    {%- endif %}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role =="
        ' "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and'
        " not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' +"
        " message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if"
        " add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "qwen 3 with thinking": (
        "{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}{%- for message in"
        " messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi_step"
        " and message.role == 'user' and not (message.content.startswith('<tool>') and"
        " message.content.endswith('</tool>')) %}{%- set ns.multi_step = false %}{%- set ns.last ="
        " index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- set content ="
        " message.content %}{%- if message.role == 'assistant' and '</think>' in content %}{%- set"
        " content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '<|im_start|>' +"
        " message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt"
        " %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is"
        " false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
    ),
    "deepseek": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif"
        " %}{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages"
        " %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%-"
        " endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if"
        " message['role'] == 'user' %}{{'<|User|>' + message['content']}}{%- endif %}{%- if"
        " message['role'] == 'assistant' and message['content'] is not none %}{{'<|Assistant|>' +"
        " message['content'] + '<|end|>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt"
        " %}{{'<|Assistant|>'}}{% endif %}"
    ),
    "vicuna": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' '"
        " }}{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}{% else %}{{"
        " 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}{% if"
        " add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'user' %}### Instruction:\n{{"
        " message['content'] }}\n\n{% elif message['role'] == 'assistant' %}### Response:\n{{"
        " message['content'] }}\n\n{% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}{% if"
        " add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "openchat": (
        "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ':"
        " ' + message['content'] + '<|end_of_turn|>'}}{% endfor %}{% if add_generation_prompt %}{{"
        " 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
    "command r": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:]"
        " %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages"
        " %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|SYSTEM|>'"
        " + system_message + '<|END|>' }}{% endif %}{% for message in loop_messages %}{% set content ="
        " message['content'] %}{% if message['role'] == 'user' %}{{ '<|USER|>' + content.strip() +"
        " '<|END|>' }}{% elif message['role'] == 'assistant' %}{{ '<|BOT|>'  + content.strip() +"
        " '<|END|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|BOT|>' }}{% endif %}"
    ),
    "falcon": (
        "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if"
        " message['role'] == 'system' %}{{ 'System: ' }}{% elif message['role'] == 'user' %}{{ 'User:"
        " ' }}{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' }}{% endif %}{{"
        " message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
    ),
    "granite": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}{{ 'Question:\n' +"
        " message['content'] + '\n\n' }}{% elif message['role'] == 'system' %}{{ 'System:\n' +"
        " message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Answer:\n' +"
        " message['content'] + '\n\n' }}{% endif %}\n{% if loop.last and add_generation_prompt %}{{"
        " 'Answer:\n' }}{% endif %}\n{% endfor %}"
    ),
    "with the generation tag": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{"
        " eos_token }}{% endgeneration %}{% else %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endif %}{%"
        " endfor %}"
    ),
    "with a macro and loop controls": (
        "{% macro turn(role, content) %}[{{ role|upper }}]{{ content|trim }}{% endmacro %}{% for m in"
        " messages %}{% if not m.content %}{% continue %}{% endif %}{{ turn(m.role, m.content) }}{% if"
        " loop.index > 50 %}{% break %}{% endif %}{% endfor %}{% if add_generation_prompt"
        " %}[ASSISTANT]{% endif %}"
    ),
    "with filters": (
        "{{ messages|map(attribute='role')|join(',') }}|{{ messages|selectattr('role', 'equalto',"
        " 'user')|list|length }}|{{ messages[-1].content|tojson }}|{{ messages|tojson(indent=2) }}|{{"
        " (messages|last).content|replace('a', 'b') }}"
    ),
}

# {n}: a number that the case chooses, of at least 10**6; {m}: one of at least 2,000. None of them may render.
BOMBS: tuple[str, ...] = (
    "{{ messages[0].content * {n}{n} }}",
    "{% for a in range({m}0) %}{% for b in range({m}0) %}{% endfor %}{% endfor %}",
    "{{ messages[0].content|center({n}000) }}",
    "{{ raise_exception('one\nat\ta time') }}",
    "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f({n}) }}",
    "{{ absent.field.{x} }}",
    "{% for _ in range({m}0) %}{{ messages[0].content * {m} }}{% endfor %}",
    "{{ 1 | no{x} }}",
    "{{ '%{n}000d' % messages|length }}",
    "{{ messages.__class__.__mro__[{m}] }}",
    "{{ (messages|length + 1) ** ({n} ** 2) }}",
    "{% include '/etc/{x}' %}",
    "{% set n = namespace(s='a') %}{% for _ in range({m}) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% if {x} %}",
    "{{ '{:{n}000}'.format(messages|length) }}",
    "{{ 1 / (messages|length - messages|length) }}",
    "{{ messages|tojson(indent={n}000) }}",
    "{% extends '{x}' %}",
    "{{ ('a' * {n}).replace('a', messages[0].content * {n}) }}",
    "{% for i in range({n}000) %}{% endfor %}",
    "{{ messages | map('{x}') | list }}",
    "{% set n = namespace(l=[1]) %}{% for _ in range({m}) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "{{ cycler.__init__.__globals__ }}",
    "{% for a in 'x' * {m} %}{% for b in 'x' * {m} %}{% for c in 'x' * {m} %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ strftime_now({n}) }}",
    "{{ ([messages[0].content] * {n}00)|join }}",
    "{{ lipsum(n={n}) }}",
    "{{ ''.__class__ }}{{ messages + {n} }}",
    "{{ ('a,' * {n}00).split(',')|sort|length }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ f() }}{% endcall %}",
    "{{ range({m}0)|map('string')|map('center', {m}0)|join }}",
    "{{ self.{x}() }}",
    "{{ messages|batch({n}00, 'x')|list|length }}{{ messages|slice({n}0)|list|length }}{{ absent.x }}",
    "{% set _ = messages.append(1) %}",
    "{{ ('x' * {m})|wordwrap(1)|indent({n}) }}",
    "{% from 'os' import {x} %}",
    "{{ dict(a=messages[0].content * {n}0)|tojson|tojson|tojson|urlencode|urlencode }}",
    "{{ {n}e{m} | int }}",
    "{{ messages|groupby('{x}')|list }}{{ absent() }}",
    "{% filter center({n}000) %}x{% endfilter %}",
    "{{ ([[1] * {n}] * {n})|sum(start=[])|length }}",
    "{% set x = [] %}{% for i in range({m}) %}{% set x = [x, x] %}{% endfor %}{{ x[{n}] }}{{ absent.y }}",
    "{{ (range({m}0)|list|tojson)|replace('1', '2' * {m})|length }}{% for a in range({m}0) %}{% for b in range({m}0) %}"
    "{% endfor %}{% endfor %}",
    "{% raw %}{{ {% endraw %}{{ raise_exception() }}",
    "{{ messages[0].content.join('x' * {n}00)|length }}{{ absent|items }}",
    "{{ '\\ud800' }}{{ absent.z }}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "{% set s = 'a' * {n}00 %}{% for _ in range({m}) %}{% set t = s|upper|lower|reverse %}{% endfor %}{{ s * 99 }}",
)
