"""Speed, measured side by side: linears against the machine's ceilings and against peers
(`lbc bench gemm`), compiled models against runtimes of the float model (`lbc bench OUT.lbc`).
"""
