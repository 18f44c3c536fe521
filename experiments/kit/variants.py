"""PreQN's variants and its rivals, each with the flags that make it."""

from preqn_jax.agents.config import ALGORITHMS, DISCRETE

_BARE = ("--notarget_networks",)
_PRESETS = [name for name in ALGORITHMS if name.startswith("preqn_") and name not in DISCRETE]
VARIANTS = {
    "preqn": ("--algorithm=preqn",),
    **{name.replace("_", "-"): (f"--algorithm={name}",) for name in _PRESETS},
    **{name: (f"--algorithm={name}",) for name in ("td3", "sac")},
    "td3-layernorm": ("--algorithm=td3", "--critic_norm=layer", *_BARE),
    "td3-fourier": ("--algorithm=td3", "--critic_features=fourier", *_BARE),
    "crossq": ("--algorithm=crossq",),
    "crossq-256": ("--algorithm=crossq", "--critic_hidden_sizes=256,256"),
    "ddpg-bare": ("--algorithm=ddpg", *_BARE),
}
