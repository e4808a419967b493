"""Search the allocation of a 7B model with simulated training; without oracle="synthetic" a real model is trained."""

import qra_bo

result = qra_bo.search(model="llama2_7b", budget="uniform:3,8", oracle="synthetic", effort="quick", seed=1,
                       display="none", **{"effort.max_full_trials": 12})
print(result)
print("bits: ", result.best["bits"])
print("ranks:", result.best["ranks"])
for baseline in result.best["baselines"]:
    print(f"{baseline['name']}: loss {baseline['loss']:.4f}, {baseline['predicted_bytes'] / 1e9:.2f} GB")
print(f"found: loss {result.best['loss']:.4f}, {result.best['memory']['predicted_bytes'] / 1e9:.2f} GB")
