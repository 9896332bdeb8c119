"""Small networks of every shape that filter removal meets, and which layers' filters must be refused in each.

`ZOO[name] = Animal(factory, example_input, excluded)`: `excluded` names exactly the layers that must be refused; all
others must be owned by a proved group. Importing has no side effects; each factory builds fresh random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Animal(NamedTuple):
    factory: Callable[[], nn.Module]
    example_input: Tensor
    excluded: frozenset[str]


class Net(nn.Module):
    """Named layers and a forward given as a function: keeps each animal to a few lines."""

    def __init__(self, forward: Callable[[Net, Tensor], object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)

    def __getattr__(self, name: str) -> nn.Module:  # narrows nn.Module's own: only layers are looked up
        return super().__getattr__(name)


def _conv(i: int, o: int, k: int = 3, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)  # type: ignore[arg-type]


def _head(i: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 3))


def chain() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 12), nn.ReLU(), _head(12))


def wide_chain() -> nn.Module:
    return nn.Sequential(_conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), _conv(32, 48), nn.ReLU(), _head(48))


def residual() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.bn0(n.stem(x)))
        x = torch.relu(x + n.bn2(n.b(torch.relu(n.bn1(n.a(x))))))
        x = torch.relu(n.bn3(n.down(x)) + n.bn4(n.shortcut(x)))
        return n.head(x)

    return Net(
        forward,
        stem=_conv(3, 8, bias=False),
        bn0=nn.BatchNorm2d(8),
        a=_conv(8, 6, bias=False),
        bn1=nn.BatchNorm2d(6),
        b=_conv(6, 8, bias=False),
        bn2=nn.BatchNorm2d(8),
        down=_conv(8, 12, stride=2),
        bn3=nn.BatchNorm2d(12),
        shortcut=_conv(8, 12, 1, stride=2),
        bn4=nn.BatchNorm2d(12),
        head=_head(12),
    )


def preactivation() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = n.stem(x)
        x = x + n.b(torch.relu(n.bn2(n.a(torch.relu(n.bn1(x))))))
        return n.head(torch.relu(n.bn3(x)))

    return Net(
        forward,
        stem=_conv(3, 8),
        bn1=nn.BatchNorm2d(8),
        a=_conv(8, 10),
        bn2=nn.BatchNorm2d(10),
        b=_conv(10, 8),
        bn3=nn.BatchNorm2d(8),
        head=_head(8),
    )


def concat() -> nn.Module:
    return Net(
        lambda n, x: n.head(torch.relu(n.c(n.bn(torch.cat([n.a(x), n.b(x)], 1))))),
        a=_conv(3, 5),
        b=_conv(3, 7, 1),
        bn=nn.BatchNorm2d(12),
        c=_conv(12, 6),
        head=_head(6),
    )


def concat_residual() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        y = torch.cat([n.a(x), n.b(x)], 1)
        return n.head(torch.relu(y + n.d(torch.relu(y))))

    return Net(forward, a=_conv(3, 5), b=_conv(3, 7, 1), d=_conv(12, 12), head=_head(12))


def dense_concat() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = n.a(x)
        x = torch.cat([x, n.b(torch.relu(n.bn1(x)))], 1)
        x = torch.cat([x, n.c(torch.relu(n.bn2(x)))], 1)
        return n.head(x)

    return Net(
        forward,
        a=_conv(3, 6),
        bn1=nn.BatchNorm2d(6),
        b=_conv(6, 4),
        bn2=nn.BatchNorm2d(10),
        c=_conv(10, 5),
        head=_head(15),
    )


def inverted_residual() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = n.stem(x)
        y = F.relu6(n.bn1(n.expand(x)))
        y = F.relu6(n.bn2(n.depthwise(y)))
        return n.head(x + n.bn3(n.project(y)))

    return Net(
        forward,
        stem=_conv(3, 6),
        expand=_conv(6, 12, 1, bias=False),
        bn1=nn.BatchNorm2d(12),
        depthwise=_conv(12, 12, groups=12),
        bn2=nn.BatchNorm2d(12),
        project=_conv(12, 6, 1, bias=False),
        bn3=nn.BatchNorm2d(6),
        head=_head(6),
    )


def concat_depthwise() -> nn.Module:
    return Net(
        lambda n, x: n.head(n.dw(torch.relu(torch.cat([n.a(x), n.b(x)], 1)))),
        a=_conv(3, 5),
        b=_conv(3, 7, 1),
        dw=_conv(12, 12, groups=12),
        head=_head(12),
    )


def grouped() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 8, groups=2), nn.ReLU(), _conv(8, 6), _head(6))


def linear_only() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def linear_on_tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 3, stride=2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 3, groups=6), nn.ReLU(), _conv(6, 2),
    )  # fmt: skip


def transposed_1d_3d() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        y = torch.relu(n.b(torch.relu(n.a(x))))
        return n.d(torch.relu(n.c(y.unsqueeze(-1).unsqueeze(-1))))

    return Net(
        forward,
        a=nn.ConvTranspose1d(3, 6, 3),
        b=nn.ConvTranspose1d(6, 5, 3),
        c=nn.ConvTranspose3d(5, 4, 2),
        d=nn.ConvTranspose3d(4, 2, 2),
    )


def unet() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        a = torch.relu(n.a(x))
        b = torch.relu(n.b(F.max_pool2d(a, 2)))
        return n.out(torch.relu(n.c(torch.cat([n.up(b), a], 1))))

    return Net(
        forward,
        a=_conv(3, 6),
        b=_conv(6, 10),
        up=nn.ConvTranspose2d(10, 5, 2, stride=2),
        c=_conv(11, 7),
        out=_conv(7, 2, 1),
    )


def flatten_spatial() -> nn.Module:
    return nn.Sequential(
        _conv(3, 6), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    )


def flatten_after_concat() -> nn.Module:
    return Net(
        lambda n, x: n.fc(torch.flatten(F.avg_pool2d(torch.cat([n.a(x), n.b(x)], 1), 4), 1)),
        a=_conv(3, 5),
        b=_conv(3, 7, 1),
        fc=nn.Linear(48, 3),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), _conv(8, 6), nn.ReLU(), _head(6))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def instance_norm() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), _conv(8, 6), nn.InstanceNorm2d(6), nn.ReLU(),
        _conv(6, 2),
    )  # fmt: skip


def batch_norm_without_affine() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU(), _conv(8, 6), _head(6))


def used_twice() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.stem(x))
        return n.head(torch.relu(n.twice(torch.relu(n.twice(x)))))

    return Net(forward, stem=_conv(3, 6), twice=_conv(6, 6), head=_head(6))


def used_on_two_branches() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        return n.head(n.same(torch.relu(n.a(x))) + n.same(torch.sigmoid(n.b(x))))

    return Net(forward, a=_conv(3, 6), b=_conv(3, 6, 1), same=_conv(6, 8), head=_head(8))


def tied_weights() -> nn.Module:
    net = Net(
        lambda n, x: n.head(torch.relu(n.after(torch.relu(n.b(torch.relu(n.a(torch.relu(n.stem(x))))))))),
        stem=_conv(3, 6),
        a=_conv(6, 6),
        b=_conv(6, 6),
        after=_conv(6, 5),
        head=_head(5),
    )
    net.b.weight = net.a.weight
    return net


def option_a_shortcut() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.bn0(n.stem(x)))
        y = n.bn2(n.b(torch.relu(n.bn1(n.a(x)))))
        return n.head(torch.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))

    return Net(
        forward,
        stem=_conv(3, 8, bias=False),
        bn0=nn.BatchNorm2d(8),
        a=_conv(8, 10, stride=2, bias=False),
        bn1=nn.BatchNorm2d(10),
        b=_conv(10, 16, bias=False),
        bn2=nn.BatchNorm2d(16),
        head=_head(16),
    )


def smooth_activations() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8), nn.Sigmoid(), _conv(8, 6), nn.BatchNorm2d(6), nn.GELU(), _conv(6, 7), nn.Hardswish(),
        _conv(7, 5), nn.Softplus(), _head(5),
    )  # fmt: skip


def chunk_gate() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        a, b = n.gate(n.stem(x)).chunk(2, 1)
        return n.head(n.after(a * torch.sigmoid(b)))

    return Net(forward, stem=_conv(3, 6), gate=_conv(6, 16), after=_conv(8, 5), head=_head(5))


def chunk_apart() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        a, b = n.both(x).chunk(2, 1)
        return n.head(torch.cat([n.a(a), n.b(b)], 1))

    return Net(forward, both=_conv(3, 12), a=_conv(6, 4), b=_conv(6, 5), head=_head(9))


def split_fixed() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        a, b = torch.split(n.both(torch.relu(n.stem(x))), [4, 8], 1)
        return n.head(torch.cat([n.a(a), n.b(b)], 1))

    return Net(forward, stem=_conv(3, 6), both=_conv(6, 12), a=_conv(4, 4), b=_conv(8, 5), head=_head(9))


def channel_shuffle() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return n.head(torch.relu(n.b(x)))

    return Net(forward, a=_conv(3, 8), b=_conv(8, 6), head=_head(6))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 16), nn.PixelShuffle(2), _conv(4, 6), nn.ReLU(), _conv(6, 2))


def prelu() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.PReLU(8), _conv(8, 6), nn.PReLU(), _conv(6, 5), nn.PReLU(5), _head(5))


def squeeze_excite() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.bn(n.stem(x)))
        scale = torch.sigmoid(n.up(torch.relu(n.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return n.head(torch.relu(n.after(x * scale)))

    return Net(
        forward,
        stem=_conv(3, 8),
        bn=nn.BatchNorm2d(8),
        squeeze=_conv(8, 4, 1),
        up=_conv(4, 8, 1),
        after=_conv(8, 6),
        head=_head(6),
    )


def squeeze_excite_linear() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        x = torch.relu(n.stem(x))
        scale = torch.sigmoid(n.up(torch.relu(n.squeeze(x.mean((2, 3))))))
        return n.head(x * scale[:, :, None, None])

    return Net(forward, stem=_conv(3, 8), squeeze=nn.Linear(8, 4), up=nn.Linear(4, 8), head=_head(8))


def global_mean() -> nn.Module:
    return Net(
        lambda n, x: n.fc(n.b(torch.relu(n.a(x))).mean((2, 3))), a=_conv(3, 8), b=_conv(8, 6), fc=nn.Linear(6, 3)
    )


def unused_layer() -> nn.Module:
    return Net(
        lambda n, x: n.head(torch.relu(n.a(x))), a=_conv(3, 8), unused=_conv(8, 6), bn=nn.BatchNorm2d(6), head=_head(8)
    )


def detached() -> nn.Module:
    return Net(lambda n, x: n.head(n.b(torch.relu(n.a(x)).detach())), a=_conv(3, 8), b=_conv(8, 6), head=_head(6))


def in_train_mode() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), _conv(8, 6), nn.BatchNorm2d(6), _head(6)
    ).train()


def frozen_layers() -> nn.Module:
    net = chain()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def local_response() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.ReLU(), nn.LocalResponseNorm(3, alpha=1.0), _conv(8, 6), nn.ReLU(), _head(6))


def channel_softmax() -> nn.Module:
    return Net(lambda n, x: n.head(n.b(n.a(x).softmax(1))), a=_conv(3, 8), b=_conv(8, 6), head=_head(6))


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def layer_scale() -> nn.Module:
    return nn.Sequential(_conv(3, 8), LayerScale(8), nn.ReLU(), _conv(8, 6), nn.ReLU(), _head(6))


def weight_norm() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(_conv(8, 6)), nn.ReLU(), _conv(6, 5), _head(5)
    )


class StandardizedConv(nn.Conv2d):
    """Its weights are standardised over the input channels: removing some changes the others."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, padding=1)


def weight_standardization() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.ReLU(), StandardizedConv(8, 6, 3), nn.ReLU(), _conv(6, 5), _head(5))


def attention() -> nn.Module:
    return Net(
        lambda n, x: n.out(n.attend(y := n.embed(x), y, y)[0]),
        embed=nn.Linear(9, 8),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        out=nn.Linear(8, 3),
    )


def recurrent() -> nn.Module:
    return Net(
        lambda n, x: n.out(torch.relu(n.hidden(n.rnn(n.embed(x))[0]))),
        embed=nn.Linear(9, 8),
        rnn=nn.LSTM(8, 6, batch_first=True),
        hidden=nn.Linear(6, 7),
        out=nn.Linear(7, 3),
    )


def input_concat() -> nn.Module:
    return Net(
        lambda n, x: n.head(n.b(torch.cat([x, torch.relu(n.a(x))], 1))), a=_conv(3, 8), b=_conv(11, 6), head=_head(6)
    )


def input_residual() -> nn.Module:
    return Net(lambda n, x: n.head(n.b(torch.relu(x + n.a(x)))), a=_conv(3, 3), b=_conv(3, 6), head=_head(6))


def hard_coded_width() -> nn.Module:
    return Net(
        lambda n, x: n.head(n.b(torch.relu(n.a(x)).view(1, 8, 8, 8))), a=_conv(3, 8), b=_conv(8, 6), head=_head(6)
    )


def two_outputs() -> nn.Module:
    def forward(n: Net, x: Tensor) -> object:
        y = torch.relu(n.stem(x))
        return {"classes": n.head(y), "map": (n.map(y), n.mid(y).mean())}

    return Net(forward, stem=_conv(3, 8), head=_head(8), map=_conv(8, 2, 1), mid=_conv(8, 4))


def output_after_activation() -> nn.Module:
    return nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 4), nn.BatchNorm2d(4), nn.Sigmoid())


def one_filter() -> nn.Module:
    return nn.Sequential(_conv(3, 1), nn.ReLU(), _conv(1, 6), nn.ReLU(), _head(6))


def broken() -> nn.Module:
    return nn.Sequential(_conv(3, 8), _conv(7, 4))


_IMAGE = (1, 3, 8, 8)


def _animal(factory: Callable[[], nn.Module], excluded: str, shape: tuple[int, ...] = _IMAGE) -> Animal:
    example = torch.linspace(-1.0, 1.0, torch.Size(shape).numel()).reshape(shape)
    return Animal(factory, example, frozenset(excluded.split()))


#: name -> (factory, example input, layers whose filters must be refused).
ZOO: dict[str, Animal] = {
    "chain": _animal(chain, "5.2"),
    "wide_chain": _animal(wide_chain, "5.2"),
    "residual": _animal(residual, "head.2"),
    "preactivation": _animal(preactivation, "head.2"),
    "concat": _animal(concat, "head.2"),
    "concat_residual": _animal(concat_residual, "head.2"),
    "dense_concat": _animal(dense_concat, "head.2"),
    "inverted_residual": _animal(inverted_residual, "head.2"),
    "concat_depthwise": _animal(concat_depthwise, "head.2"),
    "grouped": _animal(grouped, "0 2 5.2"),
    "linear_only": _animal(linear_only, "5", (1, 9)),
    "linear_on_tokens": _animal(linear_on_tokens, "4", (1, 5, 9)),
    "conv1d": _animal(conv1d, "5", (1, 2, 12)),
    "conv3d": _animal(conv3d, "7", (1, 2, 4, 4, 4)),
    "transposed": _animal(transposed, "7"),
    "transposed_1d_3d": _animal(transposed_1d_3d, "d", (1, 3, 7)),
    "unet": _animal(unet, "out"),
    "flatten_spatial": _animal(flatten_spatial, "6"),
    "flatten_after_concat": _animal(flatten_after_concat, "a b fc"),
    "group_norm": _animal(group_norm, "0 5.2"),
    "layer_norm": _animal(layer_norm, "0 5", (1, 9)),
    "instance_norm": _animal(instance_norm, "6"),
    "batch_norm_without_affine": _animal(batch_norm_without_affine, "4.2"),
    "used_twice": _animal(used_twice, "head.2"),
    "used_on_two_branches": _animal(used_on_two_branches, "head.2"),
    "tied_weights": _animal(tied_weights, "stem a b head.2"),
    "option_a_shortcut": _animal(option_a_shortcut, "stem b head.2"),
    "smooth_activations": _animal(smooth_activations, "9.2"),
    "chunk_gate": _animal(chunk_gate, "head.2"),
    "chunk_apart": _animal(chunk_apart, "both head.2"),
    "split_fixed": _animal(split_fixed, "both head.2"),
    "channel_shuffle": _animal(channel_shuffle, "a head.2"),
    "pixel_shuffle": _animal(pixel_shuffle, "2 6"),
    "prelu": _animal(prelu, "6.2"),
    "squeeze_excite": _animal(squeeze_excite, "head.2"),
    "squeeze_excite_linear": _animal(squeeze_excite_linear, "head.2"),
    "global_mean": _animal(global_mean, "fc"),
    "unused_layer": _animal(unused_layer, "unused head.2"),
    "detached": _animal(detached, "a head.2"),
    "in_train_mode": _animal(in_train_mode, "6.2"),
    "frozen_layers": _animal(frozen_layers, "5.2"),
    "local_response": _animal(local_response, "0 5.2"),
    "channel_softmax": _animal(channel_softmax, "a head.2"),
    "layer_scale": _animal(layer_scale, "0 5.2"),
    "weight_norm": _animal(weight_norm, "0 2 5.2"),
    "weight_standardization": _animal(weight_standardization, "0 2 5.2"),
    "attention": _animal(attention, "embed out", (1, 5, 9)),
    "recurrent": _animal(recurrent, "embed out", (1, 5, 9)),
    "input_concat": _animal(input_concat, "a head.2"),
    "input_residual": _animal(input_residual, "a head.2"),
    "hard_coded_width": _animal(hard_coded_width, "a head.2"),
    "two_outputs": _animal(two_outputs, "head.2 map mid"),
    "output_after_activation": _animal(output_after_activation, "2"),
    "one_filter": _animal(one_filter, "0 4.2"),
    "broken": _animal(broken, "0 1"),
}
