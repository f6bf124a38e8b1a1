"""What transformers makes of chat templates and texts with the shipped tokenizer."""

import json
import pathlib

from transformers import AutoTokenizer

SHIPPED = pathlib.Path(__file__).parents[2] / "models" / "wordnet-4m"

TALK = [{"role": "user", "content": "  What is a cat?  "}, {"role": "assistant", "content": "An animal.\n"},
        {"role": "user", "content": "And \"tea\" & <b>?"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
CALL = [{"role": "user", "content": "Weather?", "name": "zoë"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "exact": True, "n": None}}}]},
        {"role": "tool", "content": "12 °C"}]

# Each template uses what templates of published models use: trimming of blanks, loop variables, namespaces, string
# methods and slices, filters, macros, tests, `raise_exception` and `tojson`.
TEMPLATES = {
    "blocks": (
        "{% for message in messages %}\n"
        "    {% if loop.first and message['role'] != 'system' %}\n"
        "<|system|>default\n"
        "    {% endif %}\n"
        "<|{{ message.role }}|>{{ message.content | trim }}{{ eos_token }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}\n"),
    "chatml": (
        "{%- if messages[0].role == 'system' %}{% set rest = messages[1:] %}{{ '<|im_start|>system\\n' + messages[0].content"
        " + '<|im_end|>\\n' }}{% else %}{% set rest = messages %}{% endif -%}\n"
        "{%- for m in rest -%}\n{{ '<|im_start|>' ~ m['role'] }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"),
    "alternating": (
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[Q] ' + m.content.strip() + ' [/Q]' }}"
        "{% else %}{{ ' ' + m.content.strip() + eos_token }}{% endif %}{% endfor %}"),
    "namespace": (
        "{% set ns = namespace(turns=0, last='') %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.turns = ns.turns + 1 %}{% set ns.last = m.content.split('?')[0] %}{% endif %}{% endfor %}"
        "{{ ns.turns }}:{{ ns.last.upper() }}|{{ messages | length }}|{{ messages | map(attribute='role') | join(',') }}"
        "|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages[-1].content[::-1] }}"),
    "macro": (
        "{%- macro turn(role, text='none') -%}\n    [{{ role | upper }}: {{ text | replace('\\n', ' ') | trim }}]\n"
        "{%- endmacro -%}\n"
        "{%- for m in messages %}{{ turn(m.role, m.content) }}{% if not loop.last %};{% endif %}{% endfor %}"
        "{{ turn('end') if add_generation_prompt }}"),
    "tests": (
        "{% for m in messages %}{{ m.content is string }} {{ m.nothing is defined }} {{ m.name is not none }} "
        "{{ tools is none }} {{ 'at' in m.content }} {{ m.content.startswith('An') }} {{ m.get('role', '?') }}\n{% endfor %}"),
    "json": (
        "{% for m in messages %}{{ m | tojson }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson(indent=2) }}"
        "{% for key, value in m.tool_calls[0].function.arguments.items() %} {{ key }}={{ value }}{% endfor %}{% endif %}"
        "{% endfor %}"),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}A: {{ m.content }}{% endgeneration %}\n"
        "{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}"),
}

TEXTS = ["", "a cat", "  two  blanks ", "A person who bakes bread.", "Zürich, 東京 — naïve café", "emoji 🦀🎉 end",
         "tabs\tand\nlines\r\n", "x" * 70, "<s>not special?</s>", "don't stop-it: 3.14 (ok)"]


def main(folder: pathlib.Path):
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    templates = {"shipped": (SHIPPED / "chat_template.jinja").read_text(), **TEMPLATES}
    chats = []
    for name, template in templates.items():
        for talk in [TALK, WITH_SYSTEM, CALL, TALK[:2]]:
            for prompt in [False, True]:
                case = {"name": name, "template": template, "messages": talk, "add_generation_prompt": prompt}
                try:
                    case["rendered"] = tokenizer.apply_chat_template(
                        talk, chat_template=template, add_generation_prompt=prompt, tokenize=False)
                except Exception as error:
                    case["error"] = str(error)
                chats.append(case)
    texts = []
    for text in TEXTS:
        for special in [False, True]:
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            texts.append({"text": text, "special": special, "ids": ids,
                          "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    cases = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chats": chats, "texts": texts}
    (folder / "cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(__file__).parent / "text")
