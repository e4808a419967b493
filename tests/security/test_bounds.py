"""Input that grows without bound is refused before work starts, with one message."""

import json
import os
import resource
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from qra_bo.config import load_config
from qra_bo.config.compose import MOST_ALIASES
from qra_bo.config.derive import make_spec
from qra_bo.finetune.data import chat_template
from qra_bo.finetune.data.chat_template import ChatTemplate
from qra_bo.finetune.data.jsonl import MOST_CHARACTERS, records_of
from qra_bo.finetune.models.gguf_header import read_header
from qra_bo.space.decoder import MOST_LAYERS
from qra_bo.utils.errors import ConfigError, DataError, ModelError
from tests.data.chat_templates import TEMPLATES, chat_tokenizer
from tests.data.test_chat import talk


@pytest.mark.parametrize(("text", "refused"), [
    ("a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{9 * f'*a{i - 1}, '}]\n" for i in range(1, 30)), True),
    ("a: &a 1\nb: [" + (MOST_ALIASES + 1) * "*a, " + "]\n", True),
    ("a: &a 1\nb: [" + MOST_ALIASES * "*a, " + "]\n", False),
    ("a: &a {b: 1}\nc: {<<: *a, d: *a}\n", False), ("a: &a [*a]\n", False), ("\t: [", False)])
def test_yaml_whose_aliases_multiply_is_refused(text: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match="more than 20 aliases") if refused else nullcontext():
        load_config(["data=tiny", "+model=tiny"], str(tmp_path))


COUNT = "{% for i in range(99999) %}"
END = "{% endfor %}"


@pytest.mark.parametrize(("added", "refused"), [
    (f"{COUNT}{COUNT}x{END}{END}", True), (f"{COUNT}{{% if 1 %}}{COUNT}x{END}{{% endif %}}{END}", True),
    (f"{{% set r = range(99999) | list %}}{{% for a in r %}}{{% for b in r -%}} {END}{END}", True),
    (f"{{% macro m() %}}{COUNT}x{END}{{% endmacro %}}{COUNT}{{{{ m() }}}}{END}", True),
    ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}", True),
    (f"{{% for a in range(99999) recursive %}}{{{{ loop(range(99999)) }}}}{END}", True),
    (f"{COUNT}{{% for j in range(99999) if 0 %}}{END}{END}", True),
    (f"{COUNT}{{% set x = range(99999) | sum %}}{END}", True),
    ("{{ range(99999) | select('in', range(99999) | list) | list | length }}", True),
    (f"{{% for i in range(99999) if range(99999) | sum < 0 %}}{END}", True), ("{{ lipsum(n=9999999) | length }}", True),
    (f"{{% set n = namespace(v=7) %}}{COUNT}{{% set n.v = n.v * n.v %}}{END}", True),
    ("{% if 0 %}{{ 9 ** 9 ** 9 }}{% endif %}", True),
    ("{% macro m() %}{{ kwargs }}{% endmacro %}{{ m(**{'a': 1}) }}", False), (f"{COUNT}x{END}", False),
    ("{% for m in range(9) | list %}{% for i in range(m) %}{% endfor %}{% endfor %}", False),
    ("{% for i in range(3) %}x{% endfor %}{% for i in range(3) %}y{% endfor %}", False),
    ("{% for m in messages %}{% for i in range(3) %}x{% endfor %}{% endfor %}", False)])
def test_templates_that_may_never_end_are_refused(added: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.3)
    template = ChatTemplate(chat_tokenizer(TEMPLATES["chatml"] + added))
    if refused:
        with pytest.raises(DataError, match=r"may never end|recursion depth"):
            template.render(talk("a", "b"))
    else:
        assert template.render(talk("a", "b"))[1]


GROW = "{% set n = namespace(t='xxxxxxxxxx') %}{% for i in range(40) %}"


@pytest.mark.parametrize("added", [
    f"{GROW}{{% set n.t = n.t + n.t %}}{END}", f"{GROW}{{% set n.t = n.t ~ n.t %}}{END}",
    f"{GROW}{{% set n.t = [n.t, n.t] | join %}}{END}", f"{GROW}{{% set n.t = n.t | replace('x', 'xxxx') %}}{END}",
    f"{GROW}{{% set b %}}{{{{ n.t }}}}{{{{ n.t }}}}{{% endset %}}{{% set n.t = b %}}{END}",
    f"{GROW}{{% set n.t = n.t | list + n.t | list %}}{END}", f"{GROW}{{% set n.t = n.t | tojson | tojson %}}{END}",
    "{% macro m(t, k) %}{% if k %}{{ m(t + t, k - 1) }}{% endif %}{% endmacro %}{{ m('xxxx', 40) }}",
    "{{ 'x' * 99999999999 }}", "{{ 'x' | center(9999999999) }}",
    "{{ '%9999999999d' | format(1) }}", "{{ '%9999999999d' % 1 }}", "{{ 'x'.zfill(9999999999) | length }}",
    "{{ ([1] * 9999999999) | length }}", "{{ ('a\n' * 100000) | indent(99999) }}",
    "{{ [1] | batch(9999999999, 0) | list | length }}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "{{ 'x' * 30000000 }}"])
def test_templates_that_write_without_bound_are_refused(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_BYTES", 10**8)
    before, template = resource.getrlimit(resource.RLIMIT_AS), ChatTemplate(chat_tokenizer(TEMPLATES["chatml"] + added))
    for read in (template.render, template.question):
        with pytest.raises(DataError, match=r"writes more than|too big|fit 'int'"):
            read(talk("a", "b"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("fields", [
    {"text": "x" * (MOST_CHARACTERS + 1)}, {"prompt": "?", "completion": "x" * (MOST_CHARACTERS + 1)},
    {"messages": [{"role": "user", "content": "x" * MOST_CHARACTERS}, {"role": "assistant", "content": "yes"}]}])
def test_a_record_that_no_tokenizer_takes_at_once_is_refused(fields: Any) -> None:
    with pytest.raises(DataError, match=r"f, line 1: a record of 10,000,00\d characters"):
        records_of([("f, line 1", fields)], None, "f")


@pytest.mark.parametrize("n", [2**31, MOST_LAYERS + 1])
def test_a_gguf_file_of_too_many_layers_is_refused(n: int, tmp_path: Path) -> None:
    import gguf
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(n)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=f"more than {MOST_LAYERS} layers"):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(("kind", "key", "said"), [
    ("qwen2", "num_hidden_layers", f"more than {MOST_LAYERS} layers"),
    ("mixtral", "num_local_experts", "experts at most"),
    ("qwen3_moe", "num_experts", "experts at most"), ("olmoe", "num_experts", "experts at most"),
    ("qwen3_moe", "num_local_experts", "experts at most")])
def test_a_configuration_of_too_many_parts_is_not_listed(kind: str, key: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, key: 10**9}))
    with pytest.raises(ModelError, match=said):
        make_spec(load_config(["+model=hf", f"model.path={tmp_path}", "task=memory"]))


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00002.gguf"])
def test_a_gguf_file_that_is_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="a pipe or a device"):
        read_header(tmp_path / name)
