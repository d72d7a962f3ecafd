"""Train, evaluate and compare flow-matching models from the command line.

    python main.py --config=configs/digits_ot.py
    python main.py --mode=report --runs=runs/a,runs/b
    python main.py --mode=compare --data=digits --seeds=0,1,2
    python main.py --config=configs/digits_ot.py --profile=steps

Exit codes: 0 success; 2 an error in the flags or the config, reported in one line; 1 any other
error, including a signal or a full disk, which are reported in one line too.
"""

from flowmatch_jax.command import start

if __name__ == "__main__":
    start()
