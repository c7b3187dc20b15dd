/* SPDX-License-Identifier: MIT
 *
 * The gradients of train_c, dense and with experts: along the gradient of each kind of parameter
 * the loss rises by its length. */
#define main train_c_main
#include "train_c.c"
#undef main

/* Moves some 256 parameters of a kind at once, each up or down, and compares slopes of the loss. */
static int wrong(Model* m, const char* name, const float* gradient, size_t count, const int* tokens,
                 const int* before, const int* targets) {
  static float direction[E * F * C];
  static uint64_t random = 11;
  float* values = m->arena + (gradient - m->dparameters);
  const float step = 1e-3f;
  double most = 0, largest_error = 0;
  for (int trial = 0; trial < 8; ++trial) {
    double expected = 0, loss[2];
    for (size_t i = 0; i < count; ++i) {
      const float sign = random_bits(&random) % 2 == 0 ? 1.0f : -1.0f;
      direction[i] = random_bits(&random) % count < 256 ? sign : 0;
      expected += (double)direction[i] * gradient[i];
    }
    for (int side = 0; side < 2; ++side) {
      const float move = side == 0 ? -step : step;
      for (size_t i = 0; i < count; ++i) values[i] += move * direction[i];
      loss[side] = model_step(m, 0, tokens, before, targets);
      for (size_t i = 0; i < count; ++i) values[i] -= move * direction[i];
    }
    model_step(m, 0, tokens, before, targets); /* the gradients of these values again */
    const double error = fabs((loss[1] - loss[0]) / (2 * step) - expected);
    most = fabs(expected) > most ? fabs(expected) : most;
    largest_error = error > largest_error ? error : largest_error;
  }
  const int is_wrong = !(largest_error <= 0.005 * most + 0.0005);
  printf("%-6s slopes up to %.4f, errors up to %.5f%s\n", name, most, largest_error,
         is_wrong ? "  WRONG" : "");
  return is_wrong;
}

int main(void) {
  static Model models[2];
  static Language language;
  int tokens[N], before[N], targets[N], failures = 0;
  language.random = 5;
  for (int i = 0; i < V * V; ++i) language.follows[i / V][i % V] = i * 7 % V;
  next_batch(&language, tokens, before, targets);
  for (int is_moe = 0; is_moe <= 1; ++is_moe) {
    Model* m = &models[is_moe];
    const size_t experts = is_moe ? E : 1;
    uint64_t random = 3;
    if (is_moe) moe_create(&m->moe, GATEPRO_PENALTY, 0.1);
    model_create(m, is_moe, &random);
    model_step(m, 0, tokens, before, targets);
    failures += wrong(m, "wte", m->dp.wte, V * C, tokens, before, targets);
    failures += wrong(m, "wprev", m->dp.wprev, V * C, tokens, before, targets);
    failures += wrong(m, "fc", m->dp.fc, experts * F * C, tokens, before, targets);
    failures += wrong(m, "proj", m->dp.proj, experts * C * F, tokens, before, targets);
    failures += wrong(m, "head", m->dp.head, V * C, tokens, before, targets);
    if (is_moe) failures += wrong(m, "router", m->dp.router, E * C, tokens, before, targets);
    if (is_moe) moe_free(&m->moe);
    free(m->arena);
  }
  return failures != 0;
}
