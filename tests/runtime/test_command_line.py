"""`edgellama`: output, exit status, and how few modules `import runtime` loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellama.__main__ import error_message, main
from edgellama.artifact.manifest import MANIFEST
from edgellama.errors import UserError
from edgellama.generation.decode import StepBatch
from support.child import REPOSITORY, run_child, run_cli
from support.command_line import run_main
from support.exported import export_tiny
from support.tiny import VOCAB, artifact, numpy_graphs
from support.toy_tokenizers import byte_level, save


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact folder with a tokenizer and a chat template. The toy computes its graph instead of MindSpore Lite."""
    opened = artifact(tmp_path, context=512, eos_token_id=())
    monkeypatch.setattr("edgellama.engine.engine.LiteGraph", numpy_graphs(opened))
    monkeypatch.setattr("edgellama.engine.engine.check_graphs", lambda _: True)  # its graph file is a dummy
    model = byte_level()
    save(tmp_path, model)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())
    # the toy has 50 token ids only: the letters in the tests get ids below 50
    letters = [c for c in "abcdefghijklmnopqrstuvwxyzĠABC.'"]
    vocab["model"]["vocab"] = {c: i for i, c in enumerate(letters)}
    vocab["model"]["merges"] = []
    for i, token in enumerate(vocab["added_tokens"]):
        token["id"] = len(letters) + i
    vocab["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    return tmp_path


def with_template(folder: Path) -> Path:
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[-1].content }}{{ bos_token }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_text_goes_to_stdout_and_figures_to_stderr(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, text, err = run_main(capfd, "generate", str(toy), "--prompt", "hello", "--max-new-tokens", "7")
    assert status == 0
    status, out, _ = run_main(capfd, "generate", str(toy), "--prompt", "hello", "--max-new-tokens", "7", "--json")
    assert text == json.loads(out)["text"] + "\n"
    lines = err.splitlines()
    assert lines[0].startswith("Loading toy (")
    assert lines[1].startswith("[length; load ") and "prefill 5 tokens" in lines[1]


def test_logits_that_are_not_numbers_are_one_line(
    toy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StepBatch.run
    monkeypatch.setattr(StepBatch, "run", lambda step: run(step) * np.float32("nan"))
    status, _, err = run_main(capfd, "generate", str(toy), "--prompt", "hello", "--max-new-tokens", "7")
    assert status == 2
    assert "error: logits are not numbers after 5 tokens" in err
    assert "Traceback" not in err


def test_json_is_one_object_with_ids_text_reason_and_timings(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run_main(capfd, "generate", str(toy), "--prompt", "hello", "--max-new-tokens", "7", "--json")
    report = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert report["prompt_ids"] == [7, 4, 11, 11, 14]
    assert len(report["ids"]) == 7 and all(0 <= i < VOCAB for i in report["ids"])
    assert report["finish_reason"] == "length"
    timings = report["timings"]
    assert set(timings) == {"load_s", "prompt_tokens", "prefill_ms", "decode_tokens", "decode_ms_per_token"}
    assert (timings["prompt_tokens"], timings["decode_tokens"]) == (5, 6)
    _, out, _ = run_main(capfd, "generate", str(toy), "--prompt", "hello", "--max-new-tokens", "1", "--json")
    assert json.loads(out)["timings"]["decode_ms_per_token"] is None


def test_an_artifact_with_a_chat_template_uses_it_unless_raw(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_template(toy)
    arguments = ("generate", str(toy), "--prompt", "hello", "--max-new-tokens", "1", "--json")
    plain = [7, 4, 11, 11, 14]
    _, out, _ = run_main(capfd, *arguments)
    assert json.loads(out)["prompt_ids"] == [*plain, 32]
    _, out, _ = run_main(capfd, *arguments, "--raw")
    assert json.loads(out)["prompt_ids"] == plain


def test_the_system_message_comes_first(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    (toy / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    arguments = ("generate", str(toy), "--prompt", "b", "--system", "a", "--max-new-tokens", "1", "--json")
    _, out, _ = run_main(capfd, *arguments)
    letters = "abcdefghijklmnopqrstuvwxyz "
    assert "".join(letters[i] for i in json.loads(out)["prompt_ids"]) == "system auser b"
    status, _, err = run_main(capfd, *arguments, "--raw")
    assert status == 2 and "--system goes with a chat template" in err


def test_the_prompt_can_come_from_stdin(
    toy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_text("hello")
    with (tmp_path / "prompt").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        _, out, _ = run_main(capfd, "generate", str(toy), "--prompt", "-", "--max-new-tokens", "1", "--json")
    assert json.loads(out)["prompt_ids"] == [7, 4, 11, 11, 14]


def test_sampling_options_are_settings(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ids(*options: str) -> list[int]:
        arguments = ("generate", str(toy), "--prompt", "hello", "--max-new-tokens", "12", "--json", *options)
        status, out, err = run_main(capfd, *arguments)
        assert status == 0, err
        return json.loads(out)["ids"]

    likeliest, hot = ids(), ("--temperature", "9", "--top-k", "0")
    assert ids("--seed", "1", *hot) == ids("--seed", "1", *hot) != ids("--seed", "2", *hot)
    assert ids("--seed", "1", *hot) != likeliest
    # any of these options turns sampling on; with these values each one leaves the most likely token only
    for option in (["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"]):
        assert ids("--temperature", "9", *option) == likeliest
    assert ids("--temperature", "0") == ids("--no-do-sample", "--temperature", "9") == likeliest
    assert ids("--repetition-penalty", "0.001") != likeliest
    (toy / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 9.0, "top_k": 0}))
    assert ids("--seed", "1") == ids("--do-sample", "--seed", "1") != likeliest
    assert ids("--temperature", "0", "--seed", "1") == likeliest


def test_stop_ends_the_answer(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", str(toy), "--prompt", "hello", "--max-new-tokens", "12", "--json")
    _, out, _ = run_main(capfd, *arguments)
    free = json.loads(out)
    letter = next(c for c in free["text"] if c.isalpha())
    _, out, _ = run_main(capfd, *arguments, "--stop", "never", "--stop", letter)
    report = json.loads(out)
    assert report["finish_reason"] == "stop_string"
    assert report["text"] == free["text"][: free["text"].index(letter) + 1]


def newer(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))


def edited(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"batch": 1', '"batch": 2'))


@pytest.mark.parametrize(
    ("harm", "arguments", "message"),
    [
        (newer, [], "format_version is 9"),
        (edited, [], "edited after the export"),
        (lambda folder: (folder / "step.mindir").write_bytes(b"to"), [], "2 bytes; manifest.json says 3"),
        (lambda folder: (folder / "step.mindir").unlink(), [], "step.mindir: missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), [], "has no tokenizer (tokenizer.json)"),
        (None, ["--prompt", ""], "the prompt is empty"),
        (None, ["--prompt", "h\udcff"], "not valid Unicode (U+DCFF at 1). Give it as UTF-8"),
        (None, ["--prompt", "a" * 513], "prompt has 513 tokens; this artifact holds 512 (context)"),
        (None, ["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (None, ["--threads", "0"], "threads is 0"),
        (None, ["--temperature", "-1"], "temperature is -1.0; needed: a number above 0"),
        (None, ["--top-p", "1.5"], "top_p is 1.5; needed: a number above 0, at most 1"),
        (None, ["--temperature", "0", "--do-sample"], "Drop one of them"),
        (None, ["--system", "x"], "no chat template"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_2(
    toy: Path, capfd: pytest.CaptureFixture[str], harm: object, arguments: list[str], message: str
) -> None:
    if harm is not None:
        harm(toy)  # type: ignore[operator]
    status, out, err = run_main(capfd, "generate", str(toy), "--prompt", "hello", *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("Loading")]
    assert status == 2 and out == ""
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_an_error_shows_no_control_characters() -> None:
    found = error_message(UserError("the tensor a\x1b[2Jb\x0bc\u202e is surplus, \u00e9 stays"))
    assert found == "the tensor a\\x1b[2Jb\\x0bc\\u202e is surplus, \u00e9 stays"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = ["generate", str(tmp_path / "none"), "--prompt", "x"]
    plain = run_cli(*command)
    assert plain.returncode == 2
    assert "no such folder" in plain.stderr and "Traceback" not in plain.stderr
    debug = run_cli(*command, "--debug")
    assert debug.returncode == 2 and "Traceback" in debug.stderr


def test_a_reader_that_disconnects_is_not_an_error(toy: Path) -> None:
    code = (
        "import sys\nimport edgellama.__main__ as cli\nimport edgellama.cli.generate as command\n"
        "def leave(options):\n    print('x' * 100000, flush=True)\n    print('y' * 100000, flush=True)\n"
        "command.run_generate = leave\nsys.exit(cli.main(['generate', 'x', '--prompt', 'x']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_invalid_utf8_gives_no_traceback(tmp_path: Path) -> None:
    command = ["-m", "edgellama", "generate", str(tmp_path / "none"), "--prompt", "-"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = run_child(*command, input=b"h\xff", text=False, env=environment, status=2)
    assert b"no such folder" in done.stderr


def test_unknown_options_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "x", "--prompt", "x", "--temprature", "1"])
    assert caught.value.code == 2
    assert "--temprature" in capfd.readouterr().err


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return {name.partition(".")[0] for name in run_child("-c", code).stdout.split()}


def test_import_runtime_is_light() -> None:
    heavy = {"mindspore", "mindspore_lite", "torch", "transformers", "safetensors", "onnx", "exporter", "kernels"}
    assert not modules_after("import edgellama") & (heavy | {"numpy", "tokenizers", "jinja2"})
    assert not modules_after("from edgellama import LlamaForCausalLM, Tokenizer, GenerationConfig, UserError") & heavy


def test_without_mindspore_lite_the_error_names_the_command() -> None:
    artifact = export_tiny(chat=True)
    code = (
        "import sys; sys.modules['mindspore_lite'] = None\n"
        "from edgellama.__main__ import main\n"
        f"sys.exit(main(['generate', {str(artifact)!r}, '--prompt', 'hello']))"
    )
    assert "Install it with `python -m edgellama.lite install`" in run_child("-c", code, status=2).stderr


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "edgellama.cli.generate":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(1000))
            except KeyboardInterrupt:  # as native code does within an import
                raise ImportError("initialization failed") from None

sys.meta_path.insert(0, Interrupting())
from edgellama.__main__ import error_message, main
from edgellama.errors import UserError
sys.exit(main(["generate", "x", "--prompt", "x"]))
"""


def test_ctrl_c_during_imports_ends_with_130_and_no_traceback() -> None:
    done = run_child("-c", INTERRUPTED_IMPORT, status=None)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_that_became_another_exception_ends_with_130(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemError("native code returned an error")  # noqa: B904 - what native code does

    monkeypatch.setattr("edgellama.cli.generate.run_generate", fail)
    status, out, err = run_main(capfd, "generate", "x", "--prompt", "x")
    assert (status, out, err) == (130, "", "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
