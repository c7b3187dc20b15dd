# SPDX-License-Identifier: MIT
"""The operators and GateProRouter from Python: against plain torch, and in torch's own machinery."""
import copy
import io
import os
import tempfile
import unittest

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gatepro_router import GateProRouter, ops
from moe_transformer import MoeTransformer, SparseMoeBlock

MODES = {
    "off": dict(penalty=0.0),
    "published": dict(penalty=1e-4),
    "penalty": dict(penalty=0.5),
    "eliminate": dict(eliminate=True),
}
SCORES = ["softmax_after_top_k", "softmax_before_top_k", "sigmoid", "sqrt_softplus"]


def data(tokens=37, hidden=24, experts=16, dtype=torch.float32, seed=1):
    """Tokens, router weights with opinions, partners."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype)
    w = torch.randn(experts, hidden, generator=generator, dtype=torch.float64).to(dtype)
    return x, w, ops.find_partners(w)


def lost(logits, partners):
    return logits < logits[:, partners[:, 0].long()]


def reference(x, w, partners, top_k, penalty=1e-4, eliminate=False):
    """linear, the paper's equations 7 and 8, topk, softmax. The logits have no ties here."""
    logits = F.linear(x, w)
    if eliminate:
        penalised = logits.masked_fill(lost(logits, partners), float("-inf"))
    else:
        penalised = logits - penalty * lost(logits, partners).to(logits.dtype)
    top, expert_ids = penalised.topk(top_k)
    return top.softmax(1), expert_ids, logits


class DiagnosisTest(unittest.TestCase):
    def test_layer_metrics_are_what_plain_torch_counts(self):
        x, w, partners = data(tokens=200)
        logits = F.linear(x, w)
        plain = logits.topk(4)[1]
        ids = reference(x, w, partners, 4, penalty=0.5)[1]
        used = torch.zeros(16)
        together, selected, changed = 0, 0, 0
        for mine, before in zip(ids.tolist(), plain.tolist()):
            used[mine] = 1
            changed += set(mine) != set(before)
            together += sum(int(partners[e, 0]) in mine for e in mine)
            selected += len(mine)
        got = ops.layer_metrics(logits, w, partners, 4, penalty=0.5)
        similarity = F.normalize(w, dim=1) @ F.normalize(w, dim=1).T
        pairs = similarity[~torch.eye(16, dtype=torch.bool)]
        self.assertAlmostEqual(float(got[0]), 1 - float(used.mean()), places=6)
        self.assertAlmostEqual(float(got[1]), float(pairs.mean()), places=5)
        best = similarity.fill_diagonal_(-2).max(1)[0]
        self.assertAlmostEqual(float(got[2]), float(best.mean()), places=5)
        self.assertAlmostEqual(float(got[3]), changed / 200, places=6)
        self.assertAlmostEqual(float(got[6]), together / selected, places=6)
        self.assertEqual(float(got[8]), 0)
        self.assertAlmostEqual(float(got[9]), (15 / 16) ** 800, places=12)
        self.assertEqual(float(got[10]), 4)
        others = ops.layer_metrics(logits, w.flip(0), partners, 4, eliminate=True)
        self.assertGreater(float(others[8]), 0.3)  # the partners are those of other weights
        with self.assertRaisesRegex(ValueError, "layer_metrics.*top_k"):
            ops.layer_metrics(logits, w, partners, 17)

    def test_a_run_is_diagnosed(self):
        from gatepro_diagnosis import Diagnosis

        router = GateProRouter(24, 16, 4, penalty=1e-4)
        run = Diagnosis()
        for step in range(20):
            logits = router(torch.randn(300, 24))[0]
            run.record(3 - 0.01 * step, [(router, logits), (router, logits)])
        self.assertIn("lambda without effect", run.report())
        self.assertIn("the worst of 2, steps 16 to 20", run.report())
        router.set_competition(eliminate=True)
        acting = Diagnosis()
        for step in range(20):
            logits = router(torch.randn(300, 24))[0]
            acting.record(3 - 0.01 * step, [(router, logits)], validation_loss=3.1, step=10 * step)
        self.assertEqual(acting.report(), "")
        baseline = Diagnosis()
        router.set_competition(penalty=0)
        for step in range(20):
            logits = router(torch.randn(300, 24))[0]
            baseline.record(3, [(router, logits)], validation_loss=3.0, step=10 * step)
        self.assertIn("over-suppression", acting.report(baseline))
        self.assertIn("steps 150 to 190", acting.report(baseline))
        baseline.steps = [step + 1000 for step in baseline.steps]  # none in common
        self.assertEqual(acting.report(baseline), "")
        baseline.steps[3] = 0
        with self.assertRaisesRegex(ValueError, "diagnose.*baseline.*ascending"):
            acting.report(baseline)
        run.losses[10] = float("nan")
        self.assertIn("instability", run.report())


class OperatorTest(unittest.TestCase):
    def assert_routed(self, got, want, tolerance=2e-6):
        self.assertTrue(torch.equal(got[1], want[1]))
        for mine, theirs in ((got[0], want[0]), (got[2], want[2])):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)

    def test_plain_torch_has_the_same_ids_weights_and_gradients(self):
        for dtype in (torch.float32, torch.float64):
            for name, mode in MODES.items():
                with self.subTest(dtype=dtype, mode=name):
                    x, w, partners = data(tokens=200, dtype=dtype)
                    results = []
                    for route in (ops.route, reference):
                        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
                        out = route(*leaves, partners, 3, **mode)
                        upstream = torch.arange(600., dtype=dtype).reshape(200, 3).sin()
                        ((out[0] * upstream).sum() + (out[2]**2).mean()).backward()
                        results.append((out, [leaf.grad for leaf in leaves]))
                    self.assert_routed(results[0][0], results[1][0], 1e-5)
                    for mine, theirs in zip(results[0][1], results[1][1]):
                        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

    def test_off_is_a_router_without_partners_to_the_bit(self):
        x, w, partners = data()
        for got, want in zip(ops.route(x, w, partners, 3, penalty=0.0),
                             ops.route(x, w, None, 3, penalty=0.0)):
            self.assertTrue(torch.equal(got, want))

    def test_gradcheck(self):
        for score in SCORES:
            for renormalise in (False, True):
                for name, mode in MODES.items():
                    with self.subTest(score=score, renormalise=renormalise, mode=name):
                        self.gradcheck(dict(mode, score=score, renormalise=renormalise))

    def gradcheck(self, options):
        x, w, partners = data(tokens=5, hidden=4, experts=6, dtype=torch.float64)
        leaves = (x.requires_grad_(), w.requires_grad_())

        def route(x, w):
            weights, _, logits = ops.route(x, w, partners, 3, **options)
            return weights, logits

        def route_logits(logits):
            return ops.route_logits(logits, partners, 3, **options)[0]

        self.assertTrue(torch.autograd.gradcheck(route, leaves))
        logits = (x @ w.T).detach().requires_grad_()
        self.assertTrue(torch.autograd.gradcheck(route_logits, (logits,)))

    def test_a_gradient_has_no_gradient(self):
        x, w, partners = data()
        weights = ops.route(x.requires_grad_(), w, partners, 3)[0]
        gradient, = torch.autograd.grad(weights[:, 0].sum(), x, create_graph=True)
        with self.assertRaisesRegex((ValueError, RuntimeError), "first order"):
            gradient.sum().backward()

    def test_views_of_tokens_are_what_they_show(self):
        x, w, partners = data(tokens=40, hidden=24)
        wide = torch.randn(40, 3 * 24)
        wide[:, 24:48] = x
        views = {
            "slice": wide[:, 24:48],
            "rows": x.repeat_interleave(2, 0)[::2],
            "transposed": x.T.contiguous().T,
            "expanded": x[:1].expand(40, 24),
            "one token": x[:1],
            "none": x[:0],
        }
        for name, view in views.items():
            with self.subTest(name):
                for tokens in (view, view.contiguous().requires_grad_()):
                    out = ops.route(tokens, w, partners, 3, penalty=0.5)
                    want = ops.route(view.clone().contiguous(), w, partners, 3, penalty=0.5)
                    self.assertEqual(out[0].shape, (view.size(0), 3))
                    for got, expected in zip(out, want):
                        self.assertTrue(torch.equal(got, expected))
                out[0].sum().backward()  # of no tokens, too
                self.assertEqual(tokens.grad.shape, view.shape)

    def test_types_of_16_bits_are_their_floats(self):
        for dtype in (torch.bfloat16, torch.float16):
            for router in (dtype, torch.float32):
                with self.subTest(dtype=dtype, router=router):
                    x, w, _ = data(dtype=dtype)
                    w = w.to(router)
                    partners = ops.find_partners(w)
                    got = ops.route(x, w, partners, 3, penalty=0.5)
                    want = ops.route(x.float(), w.float(), partners, 3, penalty=0.5)
                    self.assertEqual(got[0].dtype, torch.float32)
                    for mine, theirs in zip(got, want):
                        self.assertTrue(torch.equal(mine, theirs))
                    x.requires_grad_(), w.requires_grad_()
                    ops.route(x, w, partners, 3)[0][:, 0].sum().backward()
                    self.assertEqual((x.grad.dtype, w.grad.dtype), (dtype, router))
                    self.assertGreater(x.grad.norm().item(), 0)

    def test_threads_do_not_show(self):
        x, w, partners = data(tokens=3000, hidden=64, experts=64)
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
                out = ops.route(*leaves, partners, 6, eliminate=True)
                (out[0][:, 0].sum() + out[2].square().mean()).backward()
                results.append(list(out) + [leaf.grad for leaf in leaves])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for got, want in zip(other, results[0]):
                self.assertTrue(torch.equal(got, want))

    def test_what_is_wrong_is_a_value_error_that_says_so(self):
        x, w, partners = data()
        for text, call in {
            "1 <= top_k <= num_experts": lambda: ops.route(x, w, partners, 17),
            "penalty finite": lambda: ops.route(x, w, partners, 3, penalty=-1.0),
            "partners of dtype Int": lambda: ops.route(x, w, partners.long(), 3),
            "partners of dtype Int .*none": lambda: ops.route(x, w, None, 3),
            "w of dtype": lambda: ops.route(x, w.double(), partners, 3),
            "score softmax_after_top_k": lambda: ops.route(x, w, partners, 3, score="softmax"),
            "logits of shape": lambda: ops.route_logits(x.half(), partners, 3),
            "x of shape": lambda: ops.route(x[0], w, partners, 3),
            "w of shape": lambda: ops.find_partners(w[0]),
            "partners of one column": lambda: ops.layer_metrics(x @ w.T, w, partners[:, :0], 3),
            "baseline_metrics": lambda: ops.diagnose(
                torch.zeros(2, 1, 9, dtype=torch.float64), *torch.zeros(2, 2, dtype=torch.float64),
                baseline_losses=torch.zeros(2, dtype=torch.float64)),
        }.items():
            with self.subTest(text):
                with self.assertRaisesRegex(ValueError, f"gatepro::[a-z_]+: need {text}"):
                    call()


class RouterTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(3)
        self.router = GateProRouter(24, 16, 3, penalty=0.5)
        with torch.no_grad():
            self.router.weight *= 50
        self.router.refresh()
        self.x = torch.randn(2, 9, 24)

    def assert_same(self, got, want):
        for mine, theirs in zip(got, want):
            self.assertTrue(torch.equal(mine, theirs))

    def test_returns_raw_logits_weights_and_ids(self):
        logits, weights, ids = self.router(self.x)
        self.assertEqual(ids.dtype, torch.int64)
        self.assertEqual((logits.shape, weights.shape, ids.shape), ((18, 16), (18, 3), (18, 3)))
        torch.testing.assert_close(logits, F.linear(self.x, self.router.weight).flatten(0, 1))
        torch.testing.assert_close(weights.sum(1), torch.ones(18))
        want = reference(self.x.flatten(0, 1), self.router.weight, self.router.partners, 3, 0.5)
        self.assertTrue(torch.equal(ids, want[1]))

    def test_is_switched_between_two_forwards(self):
        on = self.router(self.x)
        self.router.set_competition(0)
        off = self.router(self.x)
        self.assert_same(off, self.as_off())
        self.assertFalse(torch.equal(on[2], off[2]))
        self.router.set_competition(0.5)
        self.assert_same(self.router(self.x), on)

    def as_off(self):
        x = self.x.flatten(0, 1)
        weights, ids, logits = ops.route(x, self.router.weight, None, 3, penalty=0.0)
        return logits, weights, ids

    def test_padding_weighs_nothing(self):
        is_padding = torch.arange(18) % 3 == 0
        self.x.requires_grad_()
        weights = self.router(self.x, is_padding)[1]
        self.assertEqual(weights[is_padding].abs().sum().item(), 0)
        weights[:, 0].sum().backward()
        self.assertEqual(self.x.grad.flatten(0, 1)[is_padding].abs().sum().item(), 0)

    def test_state_dict_has_the_partners(self):
        file = io.BytesIO()
        torch.save(self.router.state_dict(), file)
        file.seek(0)
        other = GateProRouter(24, 16, 3, penalty=0.5)
        other.load_state_dict(torch.load(file))
        self.assertTrue(torch.equal(other.partners, self.router.partners))
        self.assertEqual(other.partners.dtype, torch.int32)
        self.assert_same(other(self.x), self.router(self.x))

    def test_copies_and_casts_keep_the_partners(self):
        other = copy.deepcopy(self.router)
        self.assert_same(other(self.x), self.router(self.x))
        with torch.no_grad():
            other.weight.normal_()
        other.refresh()
        self.assertFalse(torch.equal(other.partners, self.router.partners))
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            cast = copy.deepcopy(self.router).to(dtype)
            self.assertEqual((cast.weight.dtype, cast.partners.dtype), (dtype, torch.int32))
            self.assertTrue(torch.equal(cast.partners, self.router.partners))
            self.assertEqual(cast(self.x.to(dtype))[2].shape, (18, 3))

    def test_moves_to_a_device_without_data(self):
        meta = copy.deepcopy(self.router).to("meta")
        logits, weights, ids = meta(self.x.to("meta"))
        self.assertEqual((logits.shape, weights.shape, ids.dtype), ((18, 16), (18, 3), torch.int64))

    def test_recomputation_is_the_same(self):
        want = self.gradients(lambda x: self.router(x))
        got = self.gradients(lambda x: checkpoint(self.router, x))
        self.assert_same(got, want)

    def gradients(self, run):
        self.router.zero_grad()
        x = self.x.clone().requires_grad_()
        logits, weights, _ = run(x)
        (weights[:, 0].sum() + logits.square().mean()).backward()
        return x.grad, self.router.weight.grad.clone()

    def test_autocast_leaves_logits_in_float(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = F.linear(self.x, torch.eye(24))
            self.assertEqual(hidden.dtype, torch.bfloat16)
            logits, weights, ids = self.router(hidden)
        self.assertEqual((logits.dtype, weights.dtype), (torch.float32, torch.float32))
        self.assert_same((logits, weights, ids), self.router(hidden.float()))

    def test_anyone_may_be_the_gate_of_a_block(self):
        block = SparseMoeBlock(24, 16, 3, 8)
        hidden = self.x.clone().requires_grad_()
        y, router_logits = block(hidden)
        self.assertEqual((y.shape, router_logits.shape), (self.x.shape, (18, 16)))
        _, weights, ids = block.gate(self.x)
        token, want = self.x.flatten(0, 1)[7], torch.zeros(24)
        for weight, expert in zip(weights[7], ids[7]):
            want += weight * (F.gelu(token @ block.up[expert]) @ block.down[expert])
        torch.testing.assert_close(y.flatten(0, 1)[7], want)
        y.square().sum().backward()
        self.assertGreater(block.gate.weight.grad.norm().item(), 0)


def train_a_rank(rank, file, results):
    """One rank of two: its own part of the tokens, and partners that only rank 0 found."""
    torch.manual_seed(5)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    router = nn.parallel.DistributedDataParallel(GateProRouter(24, 16, 3, eliminate=True))
    optimizer = torch.optim.SGD(router.parameters(), 2.0)
    x = torch.randn(20, 24)[rank * 10:(rank + 1) * 10]
    for _ in range(3):
        logits, weights, _ = router(x)
        optimizer.zero_grad()
        (weights[:, 0].mean() + logits.square().mean()).backward()
        optimizer.step()
        if rank == 0:
            router.module.refresh()
    router(x)  # brings the buffers of rank 0
    torch.save(router.module.state_dict(), f"{results}/{rank}")
    dist.barrier()
    # Where LibTorch 1.13 ends a process group, it waits for a thread that may wait for Python's lock,
    # which it holds.
    os._exit(0)


class TrainingTest(unittest.TestCase):
    def test_ranks_have_the_same_router(self):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(train_a_rank, (f"{folder}/meet", folder), nprocs=2)
            first, second = (torch.load(f"{folder}/{rank}") for rank in range(2))
        for name in first:
            self.assertTrue(torch.equal(first[name], second[name]), name)
        alone, before = self.train_alone()
        torch.testing.assert_close(first["weight"], alone.weight.detach(), rtol=1e-5, atol=1e-5)
        self.assertTrue(torch.equal(first["partners"], alone.partners))
        self.assertFalse(torch.equal(first["partners"], before))

    def train_alone(self):
        torch.manual_seed(5)
        router = GateProRouter(24, 16, 3, eliminate=True)
        before = router.partners.clone()
        optimizer = torch.optim.SGD(router.parameters(), 2.0)
        x = torch.randn(20, 24)
        for _ in range(3):
            logits, weights, _ = router(x)
            optimizer.zero_grad()
            (weights[:, 0].mean() + logits.square().mean()).backward()
            optimizer.step()
            router.refresh()
        return router, before

    def test_a_transformer_learns_and_is_switched_in_the_middle(self):
        torch.manual_seed(1)
        model = MoeTransformer(context=16, width=32, num_experts=8, expert_hidden=16)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        text = torch.tensor(list(b"the cat sat on the mat, and the dog sat on the cat. " * 8))
        losses = []
        for step in range(30):
            for router in model.routers():
                router.set_competition(0 if step < 15 else 1e-4, eliminate=step >= 15)
            start = torch.randint(len(text) - 17, (8,))
            rows = text[start[:, None] + torch.arange(17)]
            logits, router_logits = model(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            loss = loss + 1e-3 * sum(each.square().mean() for each in router_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for router in model.routers():
                router.refresh()
            losses.append(loss.item())
        self.assertLess(losses[14], losses[0] - 1)
        self.assertLess(losses[-1], losses[14])


if __name__ == "__main__":
    unittest.main()
