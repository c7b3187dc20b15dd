/* SPDX-License-Identifier: MIT
 *
 * Tests of the C interface, in C99: against loops written here, against finite differences, and
 * what errors say. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gatepro_c.h"

enum { T = 37, H = 11, E = 9, K = 3, wide = 5 }; /* wide: elements between rows */

static int failures = 0;

#define EXPECT(condition)                                    \
  do {                                                       \
    if (!(condition)) {                                      \
      printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      if (++failures > 20) exit(1);                          \
    }                                                        \
  } while (0)

#define EXPECT_OK(call)                                                           \
  do {                                                                            \
    if ((call) != GATEPRO_OK) {                                                   \
      printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, gatepro_last_error()); \
      exit(1);                                                                    \
    }                                                                             \
  } while (0)

/* A call that must fail with `status` and a text that has all of `a`, `b` and `c`. */
#define EXPECT_ERROR(status, call, a, b, c) expect_error(__LINE__, #call, status, call, a, b, c)

static void expect_error(int line, const char* call, gatepro_status wanted, gatepro_status got,
                         const char* a, const char* b, const char* c) {
  const char* text = gatepro_last_error();
  if (got != wanted) {
    printf("%s:%d: %s returned %d, not %d\n", __FILE__, line, call, (int)got, (int)wanted);
    ++failures;
  } else if (!strstr(text, a) || !strstr(text, b) || !strstr(text, c)) {
    printf("%s:%d: \"%s\" lacks one of \"%s\", \"%s\", \"%s\"\n", __FILE__, line, text, a, b, c);
    ++failures;
  }
}

/* ---- a problem and what the library makes of it */

static double x[T * H], w[E * H], dweights[T * K], x_wide[T * (H + wide)];
static float x_f32[T * H], w_f32[E * H];

static double uniform(void) { /* in [-1, 1) */
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (double)(state >> 11) / 4503599627370496.0 - 1;
}

static void fill_problem(void) {
  /* Numbers that float has, so that one reference serves both. */
  for (int i = 0; i < T * H; ++i) x[i] = x_f32[i] = (float)uniform();
  for (int i = 0; i < E * H; ++i) w[i] = w_f32[i] = (float)uniform();
  for (int i = 0; i < T * K; ++i) dweights[i] = uniform();
  for (int t = 0; t < T; ++t) memcpy(x_wide + t * (H + wide), x + t * H, H * sizeof(double));
}

typedef struct results {
  int32_t ids[T * K];
  double weights[T * K], logits[T * E];
  int64_t counts[E], nonfinite;
  gatepro_statistics statistics;
} results;

static gatepro_router* router_with(int32_t scalar, int32_t mode, double lambda) {
  gatepro_config config = GATEPRO_CONFIG_INIT;
  gatepro_router* router = NULL;
  config.hidden_size = H;
  config.num_experts = E;
  config.top_k = K;
  config.scalar = scalar;
  config.mode = mode;
  config.lambda = lambda;
  EXPECT_OK(gatepro_router_create(&config, &router));
  return router;
}

static void* workspace_for(const gatepro_router* router, int32_t threads, size_t* bytes) {
  EXPECT_OK(gatepro_workspace_bytes(router, T, threads, bytes));
  return malloc(*bytes);
}

static gatepro_forward_args_f64 forward_args(results* out) {
  gatepro_forward_args_f64 args = GATEPRO_FORWARD_ARGS_INIT_F64;
  args.tokens = T;
  args.x_TH = x;
  args.w_EH = w;
  args.expert_ids_TK = out->ids;
  args.weights_TK = out->weights;
  args.tokens_per_expert_E = out->counts;
  args.logits_TE = out->logits;
  args.statistics = &out->statistics;
  args.nonfinite_tokens = &out->nonfinite;
  return args;
}

static void forward(const gatepro_router* router, gatepro_forward_args_f64 args) {
  args.workspace = workspace_for(router, args.threads, &args.workspace_bytes);
  EXPECT_OK(gatepro_forward_f64(router, &args));
  free(args.workspace);
}

static void forward_logits(const gatepro_router* router, gatepro_forward_args_f64 args) {
  args.x_TH = args.w_EH = NULL;
  args.workspace = workspace_for(router, args.threads, &args.workspace_bytes);
  EXPECT_OK(gatepro_forward_logits_f64(router, &args));
  free(args.workspace);
}

/* ---- the reference */

static double dot(const double* a, const double* b) {
  double sum = 0;
  for (int i = 0; i < H; ++i) sum += a[i] * b[i];
  return sum;
}

static void reference_partners(int32_t* partners) {
  for (int i = 0; i < E; ++i) {
    double best = -2;
    for (int j = 0; j < E; ++j) {
      const double* a = w + i * H;
      const double* b = w + j * H;
      const double similarity = dot(a, b) / sqrt(dot(a, a) * dot(b, b));
      if (j != i && similarity > best) {
        best = similarity;
        partners[i] = j;
      }
    }
  }
}

/* Losers pay `lambda`; with `eliminate` they rank last and weigh 0. Partners may be null. */
static void reference(const int32_t* partners, double lambda, int eliminate, results* out) {
  memset(out->counts, 0, sizeof out->counts);
  for (int t = 0; t < T; ++t) {
    double logits[E], rank[E];
    int lost[E], taken[E] = {0};
    for (int e = 0; e < E; ++e) out->logits[t * E + e] = logits[e] = dot(x + t * H, w + e * H);
    for (int e = 0; e < E; ++e) {
      lost[e] = partners != NULL && logits[e] < logits[partners[e]];
      rank[e] = logits[e] - (!lost[e] ? 0 : eliminate ? 1e6 : lambda);
    }
    double sum = 0;
    for (int k = 0; k < K; ++k) {
      int best = -1;
      for (int e = 0; e < E; ++e) {
        if (!taken[e] && (best < 0 || rank[e] > rank[best])) best = e;
      }
      taken[best] = 1;
      ++out->counts[best];
      out->ids[t * K + k] = best;
      out->weights[t * K + k] = exp(rank[best] - rank[out->ids[t * K]]);
      sum += out->weights[t * K + k];
    }
    for (int k = 0; k < K; ++k) out->weights[t * K + k] /= sum;
  }
}

static int sets_that_differ(const results* a, const results* b) {
  int count = 0;
  for (int t = 0; t < T; ++t) {
    int common = 0;
    for (int i = 0; i < K; ++i) {
      for (int j = 0; j < K; ++j) common += a->ids[t * K + i] == b->ids[t * K + j];
    }
    count += common != K;
  }
  return count;
}

static void expect_near(int line, const double* got, const double* wanted, int count, double most) {
  for (int i = 0; i < count; ++i) {
    if (!(fabs(got[i] - wanted[i]) <= most)) {
      printf("%s:%d: element %d is %.17g, not %.17g\n", __FILE__, line, i, got[i], wanted[i]);
      if (++failures > 20) exit(1);
    }
  }
}

static void expect_results(int line, const results* got, const results* wanted, double most) {
  for (int i = 0; i < T * K; ++i) {
    if (got->ids[i] != wanted->ids[i]) {
      printf("%s:%d: id %d is %d, not %d\n", __FILE__, line, i, (int)got->ids[i],
             (int)wanted->ids[i]);
      if (++failures > 20) exit(1);
    }
  }
  expect_near(line, got->weights, wanted->weights, T * K, most);
  expect_near(line, got->logits, wanted->logits, T * E, most);
  EXPECT(memcmp(got->counts, wanted->counts, sizeof got->counts) == 0);
}

/* ---- tests */

static void off_is_plain_top_k(void) {
  results got, wanted;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_OFF, 0);
  reference(NULL, 0, 0, &wanted);
  forward(router, forward_args(&got)); /* needs no partners */
  expect_results(__LINE__, &got, &wanted, 1e-13);
  EXPECT(got.nonfinite == 0 && got.statistics.tokens == T && got.statistics.tokens_changed == 0);

  results again;
  int32_t refreshed = 0;
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 0, 0, &refreshed));
  EXPECT(refreshed == 1);
  EXPECT_OK(gatepro_set_competition(router, GATEPRO_PENALTY, 0.0));
  forward(router, forward_args(&again));
  EXPECT(memcmp(got.ids, again.ids, sizeof got.ids) == 0);
  EXPECT(memcmp(got.weights, again.weights, sizeof got.weights) == 0);
  gatepro_router_destroy(router);
}

static void competition_is_the_loop(int32_t mode, double lambda) {
  int32_t partners[E], found[E];
  int64_t step = 0;
  results got, plain, wanted;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_OFF, 0);
  reference_partners(partners);
  reference(NULL, 0, 0, &plain);
  reference(partners, lambda, mode == GATEPRO_ELIMINATE, &wanted);
  EXPECT_OK(gatepro_set_competition(router, mode, lambda));
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 7, 2, NULL));
  EXPECT_OK(gatepro_get_partners(router, found, E, &step));
  EXPECT(step == 7 && memcmp(found, partners, sizeof found) == 0);

  forward(router, forward_args(&got));
  expect_results(__LINE__, &got, &wanted, 1e-13);
  EXPECT(sets_that_differ(&plain, &wanted) > T / 8);
  EXPECT(got.statistics.tokens_changed == sets_that_differ(&plain, &wanted));

  /* The same logits, given. */
  results given = got;
  memset(given.ids, 0, sizeof given.ids);
  forward_logits(router, forward_args(&given));
  EXPECT(memcmp(got.ids, given.ids, sizeof got.ids) == 0);
  EXPECT(memcmp(got.weights, given.weights, sizeof got.weights) == 0);

  /* A router that takes the partners, as after a checkpoint. */
  results resumed;
  gatepro_router* other = router_with(GATEPRO_F64, mode, lambda);
  EXPECT_OK(gatepro_set_partners(other, found, E, step));
  forward(other, forward_args(&resumed));
  EXPECT(memcmp(got.weights, resumed.weights, sizeof got.weights) == 0);
  int32_t refreshed = 1;
  EXPECT_OK(gatepro_refresh_f64(other, w, 0, step, 0, &refreshed));
  EXPECT(refreshed == 0); /* that step is done */
  gatepro_router_destroy(other);
  gatepro_router_destroy(router);
}

static void float_is_near_double(void) {
  float weights[T * K], logits[T * E];
  int32_t partners[E];
  results got, wanted;
  size_t bytes = 0;
  gatepro_router* router = router_with(GATEPRO_F32, GATEPRO_PENALTY, 0.5);
  gatepro_forward_args_f32 args = GATEPRO_FORWARD_ARGS_INIT_F32;
  args.tokens = T;
  args.x_TH = x_f32;
  args.w_EH = w_f32;
  args.expert_ids_TK = got.ids;
  args.weights_TK = weights;
  args.tokens_per_expert_E = got.counts;
  args.logits_TE = logits;
  args.workspace = workspace_for(router, 0, &bytes);
  args.workspace_bytes = bytes;
  EXPECT_OK(gatepro_refresh_f32(router, w_f32, 0, 0, 0, NULL));
  EXPECT_OK(gatepro_forward_f32(router, &args));
  for (int i = 0; i < T * K; ++i) got.weights[i] = weights[i];
  for (int i = 0; i < T * E; ++i) got.logits[i] = logits[i];
  reference_partners(partners);
  reference(partners, 0.5, 0, &wanted);
  expect_results(__LINE__, &got, &wanted, 1e-5);

  /* From the logits: their gradient, in float, is that of x and w. */
  float given[T * K], df[T * K], dx[T * H] = {0}, dlogits[T * E] = {0};
  args.weights_TK = given;
  EXPECT_OK(gatepro_forward_logits_f32(router, &args));
  EXPECT(memcmp(given, weights, sizeof given) == 0);
  gatepro_backward_args_f32 back = GATEPRO_BACKWARD_ARGS_INIT_F32;
  for (int i = 0; i < T * K; ++i) df[i] = (float)dweights[i];
  back.tokens = T;
  back.x_TH = x_f32;
  back.w_EH = w_f32;
  back.expert_ids_TK = got.ids;
  back.weights_TK = weights;
  back.dweights_TK = df;
  back.dx_TH = dx;
  back.dlogits_out_TE = dlogits;
  back.workspace = args.workspace;
  back.workspace_bytes = bytes;
  EXPECT_OK(gatepro_backward_f32(router, &back));
  EXPECT_OK(gatepro_backward_logits_f32(router, &back));
  for (int t = 0; t < T; ++t) {
    for (int h = 0; h < H; ++h) {
      double wanted_dx = 0;
      for (int e = 0; e < E; ++e) wanted_dx += (double)dlogits[t * E + e] * w[e * H + h];
      EXPECT(fabs(dx[t * H + h] - wanted_dx) < 1e-5);
    }
  }
  free(args.workspace);
  gatepro_router_destroy(router);
}

static void strides_and_threads_keep_the_bits(void) {
  results rows, planes;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_ELIMINATE, 0);
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 0, 0, NULL));
  forward(router, forward_args(&rows));
  gatepro_forward_args_f64 args = forward_args(&planes);
  args.x_TH = x_wide;
  args.x_stride = H + wide;
  args.expert_ids_strides[0] = args.weights_strides[0] = 1;
  args.expert_ids_strides[1] = args.weights_strides[1] = T;
  args.threads = 3;
  forward(router, args);
  for (int t = 0; t < T; ++t) {
    for (int k = 0; k < K; ++k) {
      EXPECT(planes.ids[k * T + t] == rows.ids[t * K + k]);
      EXPECT(memcmp(planes.weights + k * T + t, rows.weights + t * K + k, sizeof(double)) == 0);
    }
  }
  gatepro_router_destroy(router);
}

/* sum dweights * weights; the ids of the choice come with it. */
static double loss_of(const gatepro_router* router, int from_logits, results* out) {
  double loss = 0;
  if (from_logits) {
    forward_logits(router, forward_args(out));
  } else {
    forward(router, forward_args(out));
  }
  for (int i = 0; i < T * K; ++i) loss += dweights[i] * out->weights[i];
  return loss;
}

static void expect_gradient(int line, const gatepro_router* router, int from_logits, results* out,
                            double* values, const double* gradient, int count) {
  const double step = 1e-5;
  int compared = 0;
  static int32_t ids[T * K];
  memcpy(ids, out->ids, sizeof ids);
  for (int i = 0; i < count; ++i) {
    const double value = values[i];
    values[i] = value + step;
    const double above = loss_of(router, from_logits, out);
    int same = memcmp(ids, out->ids, sizeof ids) == 0;
    values[i] = value - step;
    const double below = loss_of(router, from_logits, out);
    same = same && memcmp(ids, out->ids, sizeof ids) == 0;
    values[i] = value;
    if (!same) continue; /* the choice is not differentiable there */
    ++compared;
    const double slope = (above - below) / (2 * step);
    expect_near(line, &gradient[i], &slope, 1, 1e-8);
  }
  EXPECT(compared > count * 9 / 10);
}

static void gradients_are_slopes(int32_t mode, double lambda) {
  static double dx[T * (H + wide)], dx_added[T * H], dw[E * H], dlogits[T * E];
  results out;
  gatepro_router* router = router_with(GATEPRO_F64, mode, lambda);
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 0, 0, NULL));
  forward(router, forward_args(&out));
  gatepro_backward_args_f64 args = GATEPRO_BACKWARD_ARGS_INIT_F64;
  args.tokens = T;
  args.x_TH = x;
  args.w_EH = w;
  args.expert_ids_TK = out.ids;
  args.weights_TK = out.weights;
  args.dweights_TK = dweights;
  args.dx_TH = dx;
  args.dx_stride = H + wide;
  args.dw_EH = dw;
  args.threads = 2;
  args.workspace = workspace_for(router, 2, &args.workspace_bytes);
  for (int i = 0; i < T * (H + wide); ++i) dx[i] = 3;
  for (int i = 0; i < E * H; ++i) dw[i] = -2;
  memset(dlogits, 0, sizeof dlogits);
  EXPECT_OK(gatepro_backward_f64(router, &args));
  args.x_TH = args.w_EH = NULL;
  args.dlogits_out_TE = dlogits;
  EXPECT_OK(gatepro_backward_logits_f64(router, &args));
  free(args.workspace);

  for (int t = 0; t < T; ++t) { /* added to, and nothing between the rows */
    for (int h = 0; h < H; ++h) dx_added[t * H + h] = dx[t * (H + wide) + h] - 3;
    for (int h = H; h < H + wide; ++h) EXPECT(dx[t * (H + wide) + h] == 3);
  }
  for (int i = 0; i < E * H; ++i) dw[i] += 2;
  expect_gradient(__LINE__, router, 0, &out, x, dx_added, T * H);
  expect_gradient(__LINE__, router, 0, &out, w, dw, E * H);
  forward(router, forward_args(&out));
  expect_gradient(__LINE__, router, 1, &out, out.logits, dlogits, T * E);
  gatepro_router_destroy(router);
}

static void settings_arrive(void) {
  gatepro_config config = GATEPRO_CONFIG_INIT;
  gatepro_router* router = NULL;
  config.hidden_size = 1;
  config.num_experts = 3;
  config.top_k = 1;
  config.scalar = GATEPRO_F64;
  config.mode = GATEPRO_ELIMINATE;
  config.partners_per_expert = 2;
  config.refresh_every = 10;
  const double twins[] = {1, 2, 2}, token[] = {1}, gradient[] = {1};
  double weight[] = {0}, dlogits[] = {0.5, 0.25, 0}, sum[] = {1, 1, 1};
  int32_t id[] = {-1}, partners[6], refreshed = 0;
  char workspace[1 << 16];
  gatepro_forward_args_f64 args = GATEPRO_FORWARD_ARGS_INIT_F64;
  args.tokens = 1;
  args.x_TH = token;
  args.w_EH = twins;
  args.expert_ids_TK = id;
  args.weights_TK = weight;
  args.workspace = workspace;
  args.workspace_bytes = sizeof workspace;
  gatepro_backward_args_f64 back = GATEPRO_BACKWARD_ARGS_INIT_F64;
  back.tokens = 1;
  back.expert_ids_TK = id;
  back.weights_TK = weight;
  back.dweights_TK = gradient;
  back.dlogits_out_TE = sum;
  back.workspace = workspace;
  back.workspace_bytes = sizeof workspace;
  for (int loses = 0; loses <= 1; ++loses) {
    gatepro_statistics statistics = {0, 0, 0, 0, 0, 0, 0, 0};
    config.higher_id_loses_ties = config.allow_zero_gradient = loses;
    args.statistics = &statistics;
    EXPECT_OK(gatepro_router_create(&config, &router));
    EXPECT_OK(gatepro_refresh_f64(router, twins, 0, 5, 0, NULL));
    EXPECT_OK(gatepro_refresh_f64(router, twins, 0, 14, 0, &refreshed));
    EXPECT(refreshed == 0);
    EXPECT_OK(gatepro_refresh_f64(router, twins, 0, 15, 0, &refreshed));
    EXPECT(refreshed == 1);
    EXPECT_OK(gatepro_get_partners(router, partners, 6, NULL)); /* two each, equally similar */
    EXPECT(partners[0] == 1 && partners[1] == 2 && partners[4] == 0 && partners[5] == 1);
    for (int again = 0; again <= 1; ++again) { /* a change of the competition keeps the rule */
      EXPECT_OK(gatepro_forward_f64(router, &args));
      EXPECT(id[0] == 1 && weight[0] == 1 && statistics.tied_pairs == 2);
      EXPECT(statistics.penalised_pairs == 1 + loses);
      EXPECT_OK(gatepro_set_competition(router, GATEPRO_ELIMINATE, 0));
    }
    if (loses == 0) {
      EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_backward_logits_f64(router, &back),
                   "top_k > 1", "top_k=1", "backward_logits");
    } else {
      EXPECT_OK(gatepro_backward_logits_f64(router, &back));
      EXPECT(sum[0] == 1 && sum[1] == 1 && sum[2] == 1); /* a softmax over one is constant */
    }
    gatepro_router_destroy(router);
  }
  EXPECT_OK(gatepro_router_create(&config, &router));
  back.dlogits_TE = dlogits;
  EXPECT_OK(gatepro_backward_logits_f64(router, &back));
  EXPECT(sum[0] == 1.5 && sum[1] == 1.25 && sum[2] == 1);
  gatepro_router_destroy(router);
}

static void nan_is_counted(void) {
  results out;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_OFF, 0);
  const double value = x[4 * H];
  x[4 * H] = NAN;
  forward(router, forward_args(&out));
  x[4 * H] = value;
  EXPECT(out.nonfinite == 1);
  for (int k = 0; k < K; ++k) EXPECT(out.ids[4 * K + k] == k); /* valid, by id */
  gatepro_router_destroy(router);
}

static void wrong_configs(void) {
  gatepro_config config = GATEPRO_CONFIG_INIT;
  gatepro_router* router = NULL;
  config.hidden_size = H;
  config.num_experts = E;
  config.top_k = K;
  const gatepro_config good = config;
#define EXPECT_REFUSED(status, a, b, c)                                   \
  EXPECT_ERROR(status, gatepro_router_create(&config, &router), a, b, c); \
  EXPECT(router == NULL);                                                 \
  config = good
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_router_create(NULL, &router),
               "gatepro_router_create", "config", "not null");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_router_create(&config, NULL),
               "gatepro_router_create", "router", "not null");
  config.struct_size = 8;
  EXPECT_REFUSED(GATEPRO_WRONG_VERSION, "config->struct_size = ", "struct_size=8", "create");
  config.version = 99;
  EXPECT_REFUSED(GATEPRO_WRONG_VERSION, "config->version = 1", "version=99", "create");
  config.top_k = E + 1;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "1 <= top_k <= num_experts", "top_k=10",
                 "num_experts=9");
  config.hidden_size = 0;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "hidden_size >= 1", "hidden_size=0", "");
  config.num_experts = -4;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "num_experts", "num_experts=-4", "");
  config.lambda = -0.5;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "lambda finite and >= 0", "lambda=-0.5", "");
  config.mode = 3;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "GATEPRO_ELIMINATE", "mode=3", "create");
  config.scalar = 2;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "GATEPRO_F64", "scalar=2", "create");
  config.refresh_every = 0;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "interval >= 1", "interval=0", "");
  config.partners_per_expert = E;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "partners_per_expert", "=9", "");
#undef EXPECT_REFUSED
}

static void wrong_calls(void) {
  static results out;
  int32_t partners[E] = {0};
  size_t bytes = 0;
  double mean;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_PENALTY, 1e-4);
  gatepro_forward_args_f64 args = forward_args(&out);
  args.workspace = workspace_for(router, 0, &args.workspace_bytes);
  const gatepro_forward_args_f64 good = args;
#define EXPECT_REFUSED(status, a, b, c)                              \
  EXPECT_ERROR(status, gatepro_forward_f64(router, &args), a, b, c); \
  args = good
  memset(out.ids, 0x55, sizeof out.ids);
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "Router::forward", "partners", "num_experts=9");
  EXPECT(out.ids[0] == 0x55555555);
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_get_partners(router, partners, E, NULL),
               "gatepro_get_partners", "refresh", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_mean_similarity(router, &mean, NULL), "similarity",
               "", "");
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 0, 0, NULL));

  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_forward_f64(NULL, &args), "gatepro_forward",
               "router", "not null");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_forward_f64(router, NULL), "args", "not null", "");
  gatepro_forward_args_f32 narrow = GATEPRO_FORWARD_ARGS_INIT_F32;
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_forward_f32(router, &narrow), "scalar", "=1", "");
  args.struct_size = 4;
  EXPECT_REFUSED(GATEPRO_WRONG_VERSION, "args->struct_size", "struct_size=4", "gatepro_forward");
  args.version = 0;
  EXPECT_REFUSED(GATEPRO_WRONG_VERSION, "args->version", "version=0", "gatepro_forward");
  args.tokens = -1;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "rows >= 0", "rows=-1", "x_TH");
  args.x_TH = NULL;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "x_TH", "null", "Router::forward");
  args.w_EH = NULL;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "w_EH", "null", "Router::forward");
  args.weights_TK = NULL;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "weights_TK", "null", "Router::forward");
  args.expert_ids_TK = NULL;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "expert_ids_TK", "null", "Router::forward");
  args.x_stride = H - 1;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "x_TH", "row_stride >= cols", "row_stride=10");
  args.expert_ids_strides[0] = 1;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "expert_ids_TK", "strides", "col_stride=0");
  args.workspace_bytes = 64;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "workspace", "bytes=64", "bytes needed=");
  args.workspace = NULL;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "a workspace", "bytes needed=", "");
  args.threads = -2;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "threads >= 0", "threads=-2", "gatepro_forward");
  args.weights_TK = x;
  EXPECT_REFUSED(GATEPRO_INVALID_ARGUMENT, "weights_TK", "x_TH", "");
  args.logits_TE = NULL;
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_forward_logits_f64(router, &args), "logits_TE",
               "null", "forward_logits");
  args = good;
  args.tokens = 0; /* is fine, also without arrays */
  args.x_TH = NULL;
  EXPECT_OK(gatepro_forward_f64(router, &args));

  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_set_competition(router, GATEPRO_PENALTY, -1),
               "lambda", "lambda=-1", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_set_competition(router, 9, 0), "mode", "mode=9",
               "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_set_competition(NULL, 0, 0), "router", "null", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_refresh_f64(router, w, 3, 1, 0, NULL), "w_EH",
               "row_stride >= cols", "row_stride=3");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_refresh_f64(router, NULL, 0, 1, 0, NULL), "w_EH",
               "null", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_get_partners(router, partners, E - 1, NULL),
               "count = num_experts * partners_per_expert", "count=8", "num_experts=9");
  partners[2] = E;
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_set_partners(router, partners, E, 0), "id=9",
               "num_experts", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_set_partners(router, NULL, E, 0), "partners_EM",
               "null", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_workspace_bytes(router, -1, 0, &bytes), "tokens",
               "=-1", "");
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_workspace_bytes(router, T, 0, NULL), "bytes",
               "null", "");

  gatepro_backward_args_f64 back = GATEPRO_BACKWARD_ARGS_INIT_F64;
  back.tokens = T;
  EXPECT_ERROR(GATEPRO_INVALID_ARGUMENT, gatepro_backward_f64(router, &back), "Router::backward",
               "null", "");
  back.version = 7;
  EXPECT_ERROR(GATEPRO_WRONG_VERSION, gatepro_backward_logits_f64(router, &back), "args->version",
               "version=7", "gatepro_backward_logits");
  free(good.workspace);
  gatepro_router_destroy(router);
  gatepro_router_destroy(NULL);
#undef EXPECT_REFUSED
}

static void similarity_is_the_mean(void) {
  int32_t partners[E];
  double pairwise = 0, partner = 0, of_pairs = 0, of_partners = 0;
  gatepro_router* router = router_with(GATEPRO_F64, GATEPRO_OFF, 0);
  EXPECT_OK(gatepro_refresh_f64(router, w, 0, 0, 0, NULL));
  EXPECT_OK(gatepro_mean_similarity(router, &pairwise, &partner));
  reference_partners(partners);
  for (int i = 0; i < E; ++i) {
    for (int j = 0; j < E; ++j) {
      const double* a = w + i * H;
      const double* b = w + j * H;
      const double similarity = dot(a, b) / sqrt(dot(a, a) * dot(b, b));
      if (j != i) of_pairs += similarity / (E * (E - 1));
      if (j == partners[i]) of_partners += similarity / E;
    }
  }
  EXPECT(fabs(pairwise - of_pairs) < 1e-12 && fabs(partner - of_partners) < 1e-12);
  gatepro_router_destroy(router);
}

static void* fail_elsewhere(void* text) {
  strcpy(text, gatepro_last_error());
  gatepro_set_competition(NULL, 0, 0);
  return NULL;
}

static void error_texts_are_of_their_thread(void) {
  char fresh[600] = "?", mine[600];
  pthread_t thread;
  gatepro_router_create(NULL, NULL);
  strcpy(mine, gatepro_last_error());
  EXPECT(strstr(mine, "gatepro_router_create") != NULL);
  EXPECT(pthread_create(&thread, NULL, fail_elsewhere, fresh) == 0);
  pthread_join(thread, NULL);
  EXPECT(strcmp(fresh, "") == 0);
  EXPECT(strcmp(mine, gatepro_last_error()) == 0);
}

int main(void) {
  EXPECT(strcmp(gatepro_last_error(), "") == 0);
  fill_problem();
  off_is_plain_top_k();
  competition_is_the_loop(GATEPRO_PENALTY, 0.5);
  competition_is_the_loop(GATEPRO_ELIMINATE, 0);
  float_is_near_double();
  strides_and_threads_keep_the_bits();
  gradients_are_slopes(GATEPRO_OFF, 0);
  gradients_are_slopes(GATEPRO_PENALTY, 0.5);
  gradients_are_slopes(GATEPRO_ELIMINATE, 0);
  similarity_is_the_mean();
  settings_arrive();
  nan_is_counted();
  wrong_configs();
  wrong_calls();
  error_texts_are_of_their_thread();
  printf("%d failures in the tests of the C interface\n", failures);
  return failures != 0;
}
