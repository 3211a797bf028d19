"""`trim-jax`: the command line. Each sub-command is a file in `trim_jax/commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from trim_jax.config import FLAG, describe, load_config, load_module
from trim_jax.errors import ConfigError, TrimError

# Heavy imports stay inside the functions: `trim-jax --help` answers at once.


def _sweep(config, args) -> None:
    from trim_jax.commands import sweep

    page = sweep.run(config, dry_run=args.dry_run)
    if page is not None:
        print(f"report: {page}")


def _study(config, args) -> None:
    from trim_jax.commands import study

    print(f"report: {study.run(config)}")


def _collect(config, args) -> None:
    from trim_jax.commands import collect

    print(f"report: {collect.run(config)}")


def _budget(config, args) -> None:
    from trim_jax.commands import budget

    print(f"results: {budget.run(config)}")


def _solve(config, args) -> None:
    from trim_jax.commands import solve

    solve.run(config, args.problem)


def _bench(config, args) -> None:
    from trim_jax.commands import bench

    bench.run(config)


def _recorded(config, args) -> None:
    from trim_jax.commands import recorded

    recorded.run(config)


def _train_lm(config, args) -> None:
    from trim_jax.commands import train

    train.train_lm(config)


def _train_prm(config, args) -> None:
    from trim_jax.commands import train

    train.train_prm(config)


def _report(args) -> None:
    from trim_jax.eval.report import write_report

    out = args.out or (args.folders[0] if len(args.folders) == 1 else "results/comparison")
    print(f"report: {write_report(args.folders, out)}")


def _data(args) -> None:
    from trim_jax.tasks.data import load_problems, write_jsonl

    problems = load_problems("arith", args.split, args.limit)
    write_jsonl(args.file, problems)
    print(f"{len(problems)} problems written to {args.file}")


# name -> (function, config file, one line of help)
CONFIGURED: dict[str, tuple[Callable, str, str]] = {
    "sweep": (_sweep, "sweep", "run TRIM-Thr at every threshold against its anchors: the main job"),
    "study": (_study, "study", "train every policy and compare them all (--config study_quick: sooner)"),
    "collect": (_collect, "collect", "collect traces of training problems, to train policies from"),
    "budget": (_budget, "budget", "route a data set under a budget of the large model's tokens"),
    "solve": (_solve, "solve", "solve one problem and show who wrote each step"),
    "train-lm": (_train_lm, "train_small", "train a language model (--config train_small or train_large)"),
    "train-prm": (_train_prm, "train_prm", "train the process reward model"),
    "bench": (_bench, "bench", "measure speed, memory, shared steps and the simulator"),
    "recorded": (_recorded, "recorded", "study two real models on their recorded solutions"),
}

# Those that run all their models on the mesh, which may span hosts.
ON_HOSTS = ("sweep", "study", "collect", "budget", "solve")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trim-jax",
        description="A small model writes, a process reward model judges every step, a large model "
        "rewrites the critical ones. Start with: trim-jax sweep",
        epilog="trim-jax COMMAND --help lists every setting of a command with its meaning.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, config, text) in CONFIGURED.items():
        sub = commands.add_parser(name, help=text, description=text, add_help=False)
        if name == "solve":
            sub.add_argument("problem", nargs="?", help="the text of the problem")
        if name == "sweep":
            sub.add_argument("--dry-run", action="store_true",
                             help="print predicted rows, time and memory, and stop")
        sub.add_argument("--config", default=config, metavar="NAME|FILE.py",
                         help=f"a config file, or the name of an installed one (default: {config})")
        sub.add_argument("-h", "--help", action="store_true", help="show this help")
    report = commands.add_parser("report", help="draw the report of one result folder, or compare several")
    report.add_argument("folders", nargs="+", metavar="FOLDER", help="result folders")
    report.add_argument("--out", help="where the page goes (default: the folder itself, or "
                        "results/comparison for several)")
    data = commands.add_parser("data", help="write a split of the benchmark arith as JSONL")
    data.add_argument("split", help="train, policy_train, validation, test or hard")
    data.add_argument("file", help="the .jsonl file to write")
    data.add_argument("--limit", type=int, default=None, help="only the first so many problems")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: an error that the user can mend).

    Of several hosts, the status of the first is the command's; the others return 0 once it is over.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in argv if a.startswith(FLAG)]
    parser = _parser()
    args = parser.parse_args([a for a in argv if a not in overrides])
    try:
        if overrides and args.command not in CONFIGURED:
            raise ConfigError(f"{args.command} has no setting {overrides[0]}: see trim-jax "
                              f"{args.command} --help")
        if args.command == "report":
            _report(args)
        elif args.command == "data":
            _data(args)
        else:
            function = CONFIGURED[args.command][0]
            if args.help:
                _help(parser, args)
                return 0
            if args.command == "solve" and not args.problem:
                raise TrimError('solve: give the text of a problem: trim-jax solve "..."')
            config = load_config(args.config, overrides)
            hosts = config.get("engine", {}).get("hosts", 1)
            if hosts > 1 and args.command not in ON_HOSTS:
                raise ConfigError(f"engine.hosts is {hosts}: {args.command} runs on one host; only "
                                  f"{', '.join(ON_HOSTS)} run on several")
            from trim_jax.commands import setup
            from trim_jax.xla import use_cores

            setup.enable_compilation_cache()
            use_cores()
            if args.command in ON_HOSTS:
                setup.on_hosts(config, lambda: function(config, args))
            else:
                function(config, args)
    except TrimError as error:
        print(f"trim-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trim-jax: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def _help(parser: argparse.ArgumentParser, args) -> None:
    for action in parser._subparsers._group_actions:
        print(action.choices[args.command].format_help())
    print("settings, changed by --config.NAME=VALUE:\n")
    print(describe(load_module(args.config)))


if __name__ == "__main__":
    sys.exit(main())
