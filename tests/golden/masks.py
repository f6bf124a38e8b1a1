"""Which tokens transformers trains on, by templates with `{% generation %}` marks.

Each template behaves as that of the family it is named after, in what bears on masks; the marked form is the reference,
and what the engine gets is the same template without marks, as families publish theirs.
"""

import json
import pathlib
import re

from transformers import AutoTokenizer

SHIPPED = pathlib.Path(__file__).parents[2] / "models" / "wordnet-4m"
SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>",
           "<end_of_turn>", "[INST]", "[/INST]", "<think>", "</think>", "<tool_call>", "</tool_call>"]


def lines(text):
    """Lines as one template without white space between them."""
    return "".join(line.strip() for line in text.strip().splitlines())


TEMPLATES = {
    # A system turn with dates always, contents trimmed, a call in place of a content.
    "llama-3.1": lines(r"""
        {{ bos_token }}
        {% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}
        {% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
        {{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}
        {{ system + '<|eot_id|>' }}
        {% for m in rest %}
        {% set role = 'ipython' if m.role == 'tool' else m.role %}
        {{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
        {% if m.tool_calls %}
        {% generation %}{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
        {{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}{% endgeneration %}
        {% elif m.role == 'assistant' %}
        {% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}
        {% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""),
    # Thoughts only after the last question; tool results are user turns.
    "qwen3": lines(r"""
        {% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
        {% set ns = namespace(open=true, last_query=messages | length - 1) %}
        {% for m in messages[::-1] %}
        {% if ns.open and m.role == 'user' %}{% set ns.open = false %}
        {% set ns.last_query = messages | length - 1 - loop.index0 %}{% endif %}
        {% endfor %}
        {% for m in messages %}
        {% if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
        {% elif m.role == 'assistant' %}
        {% set content = m.content %}{% set thought = '' %}
        {% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
        {% elif '</think>' in content %}
        {% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {% set content = content.split('</think>')[-1].lstrip('\n') %}
        {% endif %}
        {{ '<|im_start|>assistant\n' }}{% generation %}
        {% if loop.index0 > ns.last_query and (loop.last or thought) %}
        {{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {% else %}{{ content }}{% endif %}
        {% for call in m.tool_calls or [] %}
        {% if content or not loop.first %}{{ '\n' }}{% endif %}
        {{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}
        {{ '}\n</tool_call>' }}
        {% endfor %}
        {{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
        {% elif m.role == 'tool' %}
        {% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
        {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""),
    # The answerer is called `model`, the system text goes before the first question, roles alternate.
    "gemma-3": lines(r"""
        {{ bos_token }}
        {% if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}
        {% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}
        {% for m in rest %}
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
        {% set role = 'model' if m.role == 'assistant' else m.role %}
        {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
        {% if role == 'model' %}{% generation %}{{ m.content | trim + '<end_of_turn>' }}{% endgeneration %}
        {% else %}{{ m.content | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""),
    # A system text of its own where the conversation has none, contents as they are.
    "chatml": lines(r"""
        {% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
        {% for m in messages %}
        {{ '<|im_start|>' + m.role + '\n' }}
        {% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
        {% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""),
    # No generation prompt; a blank before the answer; the system text with a question that is the last message.
    "mistral": lines(r"""
        {% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
        {% else %}{% set rest = messages %}{% endif %}
        {{ bos_token }}
        {% for m in rest %}
        {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
        {% if m.role == 'user' %}
        {% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}
        {% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}
        {% else %}{% generation %}{{ ' ' + m.content | trim + eos_token }}{% endgeneration %}{% endif %}
        {% endfor %}"""),
    # The system text always with the last question, so that no conversation so far is a prefix.
    "mistral-system-last": lines(r"""
        {% set users = messages | selectattr('role', 'equalto', 'user') | list %}
        {% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}
        {% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
        {{ bos_token }}
        {% for m in rest %}
        {% if m.role == 'user' %}{{ '[INST] ' + (system if m == users[-1] else '') + m.content + '[/INST]' }}
        {% else %}{% generation %}{{ ' ' + m.content | trim + eos_token }}{% endgeneration %}{% endif %}
        {% endfor %}"""),
}


def unmarked(template):
    return re.sub(r"{% (end)?generation %}", "", template)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = [{"function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}}]
TALKS = {
    "one turn": [user("What is a cat?"), assistant("An animal.")],
    "two turns": [SYSTEM, user("What is a cat?"), assistant("An animal."), user("And a tree?"), assistant("A plant.\n")],
    "same answers": [user("Cat?"), assistant("A thing."), user("A thing."), assistant("A thing."), user("Tree?"),
                     assistant("A thing.")],
    "thoughts": [user("What is a cat?"), assistant("<think>\nIt purrs.\n</think>\n\nAn animal."), user("And a tree?"),
                 assistant("<think>\nIt grows.\n</think>\n\nA plant.")],
    "thoughts before a plain answer": [user("Cat?"), assistant("<think>\nIt purrs.\n</think>\n\nAn animal."),
                                       user("Tree?"), assistant("A plant.")],
    "call": [user("Weather?"), assistant("", tool_calls=CALL), {"role": "tool", "content": "12"},
             assistant("It is 12."), user("And now?"), assistant("Still.")],
    "call last": [user("Weather?"), assistant("", tool_calls=CALL)],
    "two calls": [user("Weather?"), assistant("I look.", reasoning_content="Look.", tool_calls=CALL + CALL),
                  {"role": "tool", "content": "12"}, {"role": "tool", "content": "13"}, assistant("It is 12.")],
}
WITH_CALLS = {"llama-3.1": ["call", "call last"], "qwen3": ["call", "call last", "two calls"]}


def main(folder: pathlib.Path):
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    cases = []
    for family, marked in TEMPLATES.items():
        plain = unmarked(marked)
        for name, talk in TALKS.items():
            if "call" in name and name not in WITH_CALLS.get(family, []):
                continue
            made = tokenizer.apply_chat_template(talk, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True)
            text = tokenizer.apply_chat_template(talk, chat_template=plain, tokenize=False)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == made["input_ids"], (family, name)
            cases.append({"family": family, "talk": name, "messages": talk, "text": text, "ids": made["input_ids"],
                          "mask": "".join(map(str, made["assistant_masks"]))})
    templates = {family: unmarked(marked) for family, marked in TEMPLATES.items()}
    head = json.dumps({"special": SPECIAL, "templates": templates}, indent=1, ensure_ascii=False)[:-2]
    rows = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    (folder / "masks.json").write_text(f'{head},\n "cases": [\n{rows}\n ]\n}}\n')


if __name__ == "__main__":
    main(pathlib.Path(__file__).parent / "text")
