"""Domain-adversarial training: gradient reversal, the discriminator of the domains, and its loss.

After `regularise` in the flow, before `adaptation`. Pure functions that work in float32. They are
the parts of DANN and CDAN+E:

    z = f of DANN, or a multilinear map of f and g of CDAN    f: features, g: probabilities
    domain_loss(discriminate(params, reverse_gradient(z, strength)), is_source, weights)
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jxfer import trees
from jxfer.models import initialise
from jxfer.trees import Tree

# Long et al. 2018, section 3.2: the widest map of features and predictions that is taken as it is.
_WIDEST_MAP = 4096
_PROJECTED_WIDTH = 1024
_HIDDEN_WIDTH = 1024


@jax.custom_vjp
def reverse_gradient(x: jax.Array, strength: jax.Array) -> jax.Array:
    """x; its gradient is that of the output times -strength.

    Gradient reversal (Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks", section
    4.2): the discriminator behind it learns to tell the domains apart, and what lies before it
    learns to prevent that. Forward mode raises JAX's error for custom_vjp.

    Args:
      x: of any shape and floating type, which its gradient has too.
      strength: float scalar; its own gradient is zero.
    """
    return x


def _keep_strength(x: jax.Array, strength: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, strength


def _reverse(strength: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (-strength * gradient).astype(gradient.dtype), jnp.zeros_like(strength)


reverse_gradient.defvjp(_keep_strength, _reverse)


def reversal_strength(progress: jax.Array) -> jax.Array:
    """2 / (1 + exp(-10 p)) - 1, from 0 at the start to almost 1 at the end of training.

    Ganin et al. 2016, section 5.2.2. It is tanh(5 p), which rounds better near 0.

    Args:
      progress: p in [0, 1], the share of the steps that are done.

    Returns:
      float32, of p's shape.
    """
    return jnp.tanh(5 * jnp.asarray(progress, jnp.float32))


def domain_loss(
    logits: jax.Array, is_source: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Binary cross-entropy of a discriminator, in nats; source and target weigh 1/2 each.

        1/2 sum_i w_i log(1 + exp(-l_i)) / sum_i w_i  over the source's examples
      + 1/2 sum_i w_i log(1 + exp(+l_i)) / sum_i w_i  over the target's

    Ganin et al. 2016, section 4.1; the weights are those of Long et al. 2018, section 3.3,
    normalised in each domain as in its authors' code.

    Args:
      logits: l [N]; positive says source.
      is_source: [N] bool, or float 0 and 1; there is one of each at least.
      weights: w [N], positive; all 1 unless given.

    Returns:
      A float32 scalar.
    """
    logits, is_source = logits.astype(jnp.float32), is_source.astype(jnp.float32)
    weights = jnp.ones_like(logits) if weights is None else weights.astype(jnp.float32)

    def mean(losses: jax.Array, of: jax.Array) -> jax.Array:
        return jnp.sum(losses * of) / jnp.sum(of)

    source = mean(jax.nn.softplus(-logits), weights * is_source)
    target = mean(jax.nn.softplus(logits), weights * (1 - is_source))
    return (source + target) / 2


def multilinear(features: jax.Array, probabilities: jax.Array) -> jax.Array:
    """The outer product f g^T of each example, flat: what the discriminator of CDAN sees.

    Long et al. 2018, "Conditional Adversarial Domain Adaptation", section 3.2. The authors' code
    stops the gradient of the probabilities; that is left to the caller.

    Args:
      features: f [B, C].
      probabilities: g [B, K].

    Returns:
      [B, C * K] float32, the classes fastest.
    """
    features, probabilities = (x.astype(jnp.float32) for x in (features, probabilities))
    return (features[:, :, None] * probabilities[:, None, :]).reshape(len(features), -1)


def random_multilinear(features: jax.Array, probabilities: jax.Array, matrices: Tree) -> jax.Array:
    """(f R_f) * (g R_g) / sqrt(d), whose inner products are those of `multilinear` on average.

    Long et al. 2018, section 3.2.

    Args:
      features: f [B, C].
      probabilities: g [B, K].
      matrices: R_f [C, d] and R_g [K, d], of `projections`.

    Returns:
      [B, d] float32.
    """
    features = features.astype(jnp.float32) @ matrices["features"]
    probabilities = probabilities.astype(jnp.float32) @ matrices["probabilities"]
    return features * probabilities / math.sqrt(features.shape[1])


def projection_shapes(channels: int, classes: int) -> dict[str, tuple[int, int]] | None:
    """Shapes of what `projections` draws; None where the outer product has 4096 units or less.

    The limit is that of Long et al. 2018, section 3.2; the width d = 1024 is their code's.
    """
    if channels * classes <= _WIDEST_MAP:
        return None
    return {
        "features": (channels, _PROJECTED_WIDTH),
        "probabilities": (classes, _PROJECTED_WIDTH),
    }


def projections(channels: int, classes: int, seed: int) -> Tree | None:
    """The random matrices of `random_multilinear`, drawn once; None as `projection_shapes`.

    Uniform with mean 0 and variance 1. The paper allows any symmetric distribution with these; by
    its theorem 1 the inner products vary more the larger the fourth moment is, and that of the
    uniform one is less than the Gaussian's.

    Returns:
      `{"features": [C, d], "probabilities": [K, d]}` float32, in NumPy.
    """
    shapes = projection_shapes(channels, classes)
    if shapes is None:
        return None
    drawn = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"projections/{name}".encode())])
        drawn[name] = (math.sqrt(12) * (rng.random(shape) - 0.5)).astype(np.float32)
    return drawn


def entropy_weights(probabilities: jax.Array) -> jax.Array:
    """1 + exp(-H(g)) of each example: 2 for a sure prediction, 1 + 1/K for a uniform one.

    The entropy conditioning of CDAN+E (Long et al. 2018, section 3.3); MCC has the same weights. No
    gradient goes through, as in the authors' library. The code of the paper lets it through,
    reversed like that of the features.

    Args:
      probabilities: g [B, K].

    Returns:
      [B] float32.
    """
    probabilities = jax.lax.stop_gradient(probabilities.astype(jnp.float32))
    return 1 + jnp.exp(-jnp.sum(jax.scipy.special.entr(probabilities), axis=-1))


def discriminator_shapes(width: int) -> Tree:
    """Parameters of the discriminator of source and target: two hidden layers of 1024 units.

    As in Ganin et al. 2016, section 5.2.2, for all but the smallest networks.

    Args:
      width: of its input.

    Returns:
      `jax.ShapeDtypeStruct`s: `hidden1`, `hidden2` and `output`, a `kernel` and a `bias` each.
    """
    widths = (width, _HIDDEN_WIDTH, _HIDDEN_WIDTH, 1)
    return {
        name: {
            "kernel": jax.ShapeDtypeStruct((before, after), jnp.float32),
            "bias": jax.ShapeDtypeStruct((after,), jnp.float32),
        }
        for name, before, after in zip(
            ("hidden1", "hidden2", "output"), widths[:-1], widths[1:], strict=True
        )
    }


def discriminator_init(width: int, seed: int) -> Tree:
    """Starting values by `initialise.draw`: normal kernels, He's before a ReLU; biases of zero.

    Returns:
      float32 arrays in NumPy, of `discriminator_shapes(width)`.
    """
    shapes = trees.flatten(discriminator_shapes(width))
    return trees.unflatten(
        {
            path: initialise.draw(f"discriminator/{path}", leaf.shape, seed)
            for path, leaf in shapes.items()
        }
    )


def discriminate(params: Tree, x: jax.Array) -> jax.Array:
    """Logits that an example is of the source.

    Args:
      params: of `discriminator_init`.
      x: [B, D].

    Returns:
      [B] float32.
    """

    def dense(name: str, x: jax.Array) -> jax.Array:
        with jax.named_scope(name):  # for the count of FLOPs by layer
            return x @ params[name]["kernel"] + params[name]["bias"][None]

    x = jax.nn.relu(dense("hidden1", x.astype(jnp.float32)))
    return dense("output", jax.nn.relu(dense("hidden2", x)))[:, 0]
