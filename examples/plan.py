"""Which uniform choices fit a budget? A memory plan needs no weights, no GPU and no download."""

import qra_bo

plan = qra_bo.plan(model="llama2_7b", budget=["8GB", "10GB", "12GB"], device="cuda")
for answer in plan.budgets:
    print(f"{answer.text}: largest uniform ranks {dict(answer.ranks)}")
    if answer.best is not None:
        print(f"  most bits: {answer.best.what}, {answer.best.total / 1e9:.2f} GB, {answer.best.phase} phase")
