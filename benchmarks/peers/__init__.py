"""KAEM beside the models that do the same job: one protocol, one table. `python -m benchmarks.peers`, or `make peers`.

Files, each using those before it: `tasks`, `contestants` and what they are made of (`kaem_contestants`,
`mixture_prior`, `flow_prior`, `latent_ebm`, `vae`), `ddpm`, `training`, `features`, `scoring`, `runs`, `table`.
"""
