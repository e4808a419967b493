"""GGUF files loaded by llama.cpp itself, through the package ``llama-cpp-py-sync``: logits.

This module imports nothing of ``qra_bo``, so that an environment without it can run it as a file.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "llama-cpp-py-sync"
_ERROR = 4
"""``GGML_LOG_LEVEL_ERROR``."""
_said: list[str] = []


@cache
def _listen() -> Any:
    """Keep llama.cpp's messages from the terminal, and its errors in ``_said``; the result must stay alive."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib  # an optional package, with a library of its own

    ffi = get_ffi()

    def listen(level: int, text: Any, _: object) -> None:
        if level == _ERROR:
            _said.append(ffi.string(text).decode(errors="replace").strip())

    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", listen)
    get_lib().llama_log_set(callback, ffi.NULL)
    return callback


class LlamaCpp:
    """A GGUF model in llama.cpp on the CPU, with a LoRA GGUF or without one. Use it as a context manager.

    Args:
        model: GGUF file.
        lora: LoRA GGUF for it, or ``None``.
        length: Tokens of the context.
        exact: Whether keys and values are kept in fp32; llama.cpp's own default is fp16.
        threads: Threads of the CPU.

    Raises:
        ImportError: If the package is not installed.
        RuntimeError: If llama.cpp refuses a file.
    """

    def __init__(self, model: Path, lora: Path | None = None, *, length: int = 512, exact: bool = False,
                 threads: int = 1) -> None:
        from llama_cpp_py_sync import Llama  # an optional package, with a library of its own
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        ffi, lib = get_ffi(), get_lib()
        _listen()
        _said.clear()
        kept = {"type_k": "f32", "type_v": "f32"} if exact else {}
        try:
            self._llama = Llama(str(model), n_ctx=length, n_batch=length, n_ubatch=length, n_threads=threads,
                                flash_attn_type=0, **kept)
        except RuntimeError as error:
            raise RuntimeError(f"llama.cpp refuses {model}: {'; '.join(_said) or error}") from error
        self.context, self._ffi, self._lib = self._llama._ctx, ffi, lib
        if lora is not None:
            adapter = lib.llama_adapter_lora_init(self._llama._model, str(lora).encode())
            if adapter == ffi.NULL:
                self._llama.close()
                raise RuntimeError(f"llama.cpp refuses the adapter {lora}: {'; '.join(_said)}")
            lib.llama_set_adapters_lora(self.context, ffi.new("struct llama_adapter_lora *[]", [adapter]), 1,
                                        ffi.new("float[]", [1.0]))

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the logits after each of ``n`` tokens: ``n x vocabulary``, fp32."""
        lib, count = self._lib, len(ids)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        batch = lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for at, token in enumerate(ids):
                batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = int(token), at, 1, 1
                batch.seq_id[at][0] = 0
            if code := lib.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode failed with code {code}")
        finally:
            lib.llama_batch_free(batch)
        width = self._llama.n_vocab
        start = lib.llama_get_logits(self.context)
        return np.frombuffer(self._ffi.buffer(start, 4 * count * width), np.float32).reshape(count, width).copy()
