"""Many tasks at once: the Collatz sequences that start with 1 to 100 all end with 1.

python examples/collatz.py ENDPOINT_ID
"""

import os
import sys

from flux_endpoint import Executor


def generate_collatz_sequence(n: int, sequence_limit=10_000):
    seq = [n]
    while n != 1 and len(seq) < sequence_limit:
        if n % 2:
            n = 3 * n + 1
        else:
            n //= 2
        seq.append(n)
    return seq


endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")

generate_from = 1
generate_through = 100
results, disproof_candidates = [], []
with Executor(endpoint_id=endpoint_id) as ex:
    numbers = range(generate_from, generate_through + 1)
    futs = [ex.submit(generate_collatz_sequence, n) for n in numbers]
    print("Tasks all submitted; waiting for results")

# In the order of submission, whatever the order in which they arrived.
for f in futs:
    r = f.result()
    results.append(r)
    if r[-1] != 1:
        disproof_candidates.append(r[0])

print(f"All sequences generated (from {generate_from} to {generate_through})")
for res in results:
    print(res)

if disproof_candidates:
    print("Possible conjecture disproving integers:", disproof_candidates)
