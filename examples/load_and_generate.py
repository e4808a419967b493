"""Fine-tune a tiny random model for a few steps, then load the quantised base with its adapter and generate text."""

import qra_bo

result = qra_bo.fine_tune(model="tiny", data="tiny", allocation="mix:3.5,4", device="cpu", display="none",
                          train={"batch": 2, "length": 32}, eval={"sequences": 4}, final={"steps": 8},
                          **{"adapter.lr": 0.01, "data.max_records": 32})
print(result)
model, tokenizer = qra_bo.load(result.folder)
inputs = tokenizer("A tiny model says", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]))
