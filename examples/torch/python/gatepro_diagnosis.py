# SPDX-License-Identifier: MIT
"""What a run's metrics say is wrong with it: signatures of failure, with evidence and remedy."""
import math

import torch

import gatepro_ops

ops = gatepro_ops.load()


class Diagnosis:
    """Collects a run's metrics and says what is wrong with it.

        diagnosis = Diagnosis()
        diagnosis.record(loss, [(router, logits), ...], step=step)  # after its forward
        print(diagnosis.report())

    router: a GateProRouter, or whatever has its weight, partners, top_k, penalty and eliminate.
    logits: the raw ones [T, E] of its forward. They are routed again on the CPU, so record every
    few steps where that takes too long, and say which: a run is young before step 100, and is
    compared with the same steps of a baseline.
    """

    def __init__(self):
        self.metrics, self.losses, self.validation_losses, self.steps = [], [], [], []
        self.penalty, self.eliminate = 0.0, False

    def record(self, loss, layers, validation_loss=math.nan, step=None):
        """Adds a step: its loss, its layers, and its validation loss where that was measured.

        step: its number, or that after the last one recorded, from 1.
        """
        self.steps.append(int(step) if step is not None else max(self.steps, default=0) + 1)
        self.losses.append(float(loss))
        self.validation_losses.append(float(validation_loss))
        self.metrics.append(torch.stack([
            ops.layer_metrics(logits, router.weight, router.partners, router.top_k,
                              penalty=router.penalty, eliminate=router.eliminate)
            for router, logits in layers]))
        self.penalty, self.eliminate = layers[0][0].penalty, layers[0][0].eliminate

    def tensors(self):
        """What the operator takes of a run."""
        as_double = dict(dtype=torch.float64)
        return (torch.stack(self.metrics), torch.tensor(self.losses, **as_double),
                torch.tensor(self.validation_losses, **as_double), torch.tensor(self.steps))

    def report(self, baseline=None):
        """The findings, two lines each; "" for none. baseline: the same run without competition."""
        names = ("baseline_metrics", "baseline_losses", "baseline_validation_losses",
                 "baseline_steps")
        given = dict(zip(names, baseline.tensors())) if baseline else {}
        return ops.diagnose(*self.tensors(), penalty=self.penalty, eliminate=self.eliminate,
                            **given)
