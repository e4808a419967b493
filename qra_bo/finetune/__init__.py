"""The oracle that fine-tunes: base models, quantised layers, adapters, training, evaluation, profiles, memory.

Each part imports only those before it: data, models, training, quantization, adapters, then profiling, memory probe
and evaluation, then ``oracle``.
"""
