"""Solves tiny requests on meshes of eight fake devices; run by `test_engine_mesh.py`.

In a process of its own: where a device is late for a collective, XLA ends the whole process.
"""

import pickle
import sys

import jax
from tiny import requests, tiny_engine, tiny_trio

from trim_jax.sharding import make_mesh, param_shardings


def main(out, problems, *meshes):
    """Writes {mesh: solutions} to `out`; a mesh is "data x model", as in "4x2", or "none"."""
    found, trio = {}, tiny_trio()
    for name in meshes:
        if name == "none":
            found[name] = list(tiny_engine().run(requests(range(int(problems)))))
            continue
        data, model = map(int, name.split("x"))
        mesh = make_mesh(data, model)
        params = tuple(
            jax.device_put(p, param_shardings(config, mesh))
            for p, config in zip(trio.params, trio.models)
        )
        engine = tiny_engine(mesh, params, slots=3 * data, rows=2 * data, tail_rows=2)
        found[name] = list(engine.run(requests(range(int(problems)))))
    with open(out, "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
