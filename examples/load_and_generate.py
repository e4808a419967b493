"""Fine-tune a tiny random model for a few steps, then load the quantised base with its adapter and generate text."""

import qra_bo

result = qra_bo.search(model="tiny", data="tiny", budget="uniform:4,4", effort="quick", device="cpu",
                       display="none", train={"batch": 2, "length": 32}, fidelity={"high": 4, "low": 2},
                       eval={"sequences": 4}, final={"steps": 4}, confirm={"seeds": 0},
                       **{"effort.max_full_trials": 4, "data.max_records": 32})
print(result)
model, tokenizer = qra_bo.load(result.folder)
inputs = tokenizer("A tiny model says", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]))
