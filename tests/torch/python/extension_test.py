# SPDX-License-Identifier: MIT
"""The operators as torch.utils.cpp_extension compiles them."""
import pathlib
import sysconfig
import unittest

import torch
from torch.utils import cpp_extension

import gatepro_ops


class ExtensionTest(unittest.TestCase):
    @unittest.skipUnless(cpp_extension.is_ninja_available(), "there is no ninja")
    @unittest.skipUnless(pathlib.Path(sysconfig.get_path("include"), "Python.h").exists(),
                         "there are no headers of Python")
    def test_compiles_and_routes(self):
        ops = gatepro_ops.load(optimisation="-O0")
        self.assertIs(ops, gatepro_ops.load())
        x = torch.tensor([[1., 0.5], [0.25, 2]], requires_grad=True)
        w = torch.tensor([[1., 0], [0.5, 0], [0, 1], [0, 0.5]])
        partners = ops.find_partners(w)
        self.assertEqual(partners[:, 0].tolist(), [1, 0, 3, 2])
        weights, expert_ids, logits = ops.route(x, w, partners, 2, eliminate=True)
        self.assertEqual(expert_ids.tolist(), [[0, 2], [2, 0]])  # 1 loses to 0, 3 to 2
        self.assertTrue(torch.equal(logits, x @ w.T))
        weights[:, 0].sum().backward()
        self.assertGreater(x.grad.norm().item(), 0)


if __name__ == "__main__":
    unittest.main()
