/* SPDX-License-Identifier: MIT
 *
 * How does a C trainer replace its dense FFN by a mixture of experts? This one has one arena of
 * floats, pairs of forward and backward, and OpenMP pragmas; lines marked "MoE" are what the
 * replacement adds. It learns to predict the next token of a made-up language.
 *
 *   train_c [--dense | --moe] [--lambda <number> | --eliminate] [--steps <n>] [--seed <n>]
 *
 * Letters in comments: B sequences of T tokens, N = B * T, C channels, F hidden units of an FFN, V
 * tokens of the vocabulary, E experts, K experts per token. Backwards add to gradients. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gatepro_c.h"
#ifdef _OPENMP
#include <omp.h>
#endif

enum { B = 4, T = 64, N = B * T, C = 32, V = 16, F = 64, E = 8, K = 2 };

/* ---- layers */

static void matmul_forward(float* out, const float* inp, const float* weight, int rows, int in,
                           int outs) {
  /* out (rows, outs) = inp (rows, in) times weight (outs, in) transposed */
#pragma omp parallel for
  for (int n = 0; n < rows; ++n) {
    for (int o = 0; o < outs; ++o) {
      float sum = 0;
      for (int i = 0; i < in; ++i) sum += inp[n * in + i] * weight[o * in + i];
      out[n * outs + o] = sum;
    }
  }
}

static void matmul_backward(float* dinp, float* dweight, const float* dout, const float* inp,
                            const float* weight, int rows, int in, int outs) {
#pragma omp parallel for
  for (int n = 0; n < rows; ++n) {
    for (int o = 0; o < outs; ++o) {
      const float d = dout[n * outs + o];
      for (int i = 0; i < in; ++i) dinp[n * in + i] += d * weight[o * in + i];
    }
  }
#pragma omp parallel for
  for (int o = 0; o < outs; ++o) {
    for (int n = 0; n < rows; ++n) {
      const float d = dout[n * outs + o];
      for (int i = 0; i < in; ++i) dweight[o * in + i] += d * inp[n * in + i];
    }
  }
}

static const float gelu_scale = 0.7978845608f; /* sqrt(2 / pi) */

static void gelu_forward(float* out, const float* inp, int count) {
#pragma omp parallel for
  for (int i = 0; i < count; ++i) {
    const float x = inp[i];
    out[i] = 0.5f * x * (1 + tanhf(gelu_scale * (x + 0.044715f * x * x * x)));
  }
}

static void gelu_backward(float* dinp, const float* dout, const float* inp, int count) {
#pragma omp parallel for
  for (int i = 0; i < count; ++i) {
    const float x = inp[i];
    const float t = tanhf(gelu_scale * (x + 0.044715f * x * x * x));
    const float slope = gelu_scale * (1 + 3 * 0.044715f * x * x);
    dinp[i] += dout[i] * (0.5f * (1 + t) + 0.5f * x * (1 - t * t) * slope);
  }
}

static void encoder_forward(float* out, const float* wte, const float* wprev, const int* tokens,
                            const int* before) {
#pragma omp parallel for
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < C; ++c) out[n * C + c] = wte[tokens[n] * C + c] + wprev[before[n] * C + c];
  }
}

static void encoder_backward(float* dwte, float* dwprev, const float* dout, const int* tokens,
                             const int* before) {
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < C; ++c) {
      dwte[tokens[n] * C + c] += dout[n * C + c];
      dwprev[before[n] * C + c] += dout[n * C + c];
    }
  }
}

static void residual_forward(float* out, const float* a, const float* b, int count) {
  for (int i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

static void residual_backward(float* da, float* db, const float* dout, int count) {
  for (int i = 0; i < count; ++i) {
    da[i] += dout[i];
    db[i] += dout[i];
  }
}

/* The mean cross entropy, and its gradient dlogits (N, V). */
static float loss_forward_backward(float* dlogits, const float* logits, const int* targets) {
  double loss = 0;
  for (int n = 0; n < N; ++n) {
    const float* row = logits + n * V;
    float most = row[0], sum = 0;
    for (int v = 1; v < V; ++v) most = row[v] > most ? row[v] : most;
    for (int v = 0; v < V; ++v) sum += expf(row[v] - most);
    loss += logf(sum) + most - row[targets[n]];
    for (int v = 0; v < V; ++v) {
      dlogits[n * V + v] += (expf(row[v] - most) / sum - (v == targets[n])) / N;
    }
  }
  return (float)(loss / N);
}

/* out (rows, C) = proj gelu(fc inp); fc (F, C), proj (C, F). hidden and active (rows, F) are kept.
 */
static void ffn_forward(float* out, float* hidden, float* active, const float* inp, const float* fc,
                        const float* proj, int rows) {
  matmul_forward(hidden, inp, fc, rows, C, F);
  gelu_forward(active, hidden, rows * F);
  matmul_forward(out, active, proj, rows, F, C);
}

static void ffn_backward(float* dinp, float* dfc, float* dproj, float* dhidden, float* dactive,
                         const float* dout, const float* inp, const float* hidden,
                         const float* active, const float* fc, const float* proj, int rows) {
  matmul_backward(dactive, dproj, dout, active, proj, rows, F, C);
  gelu_backward(dhidden, dactive, hidden, rows * F);
  matmul_backward(dinp, dfc, dhidden, inp, fc, rows, C, F);
}

/* ---- memory: parameters, activations and their gradients are pieces of one arena */

typedef struct {
  float *wte, *wprev; /* (V, C) of the token and of the one before it */
  float *fc, *proj;   /* (F, C), (C, F); MoE: (E, F, C), (E, C, F) */
  float* head;        /* (V, C) */
  float* router;      /* MoE: (E, C) */
} Parameters;

typedef struct {
  float* encoded;         /* (N, C) */
  float *hidden, *active; /* (N, F); MoE: (N * K, F) */
  float* ffn;             /* (N, C) */
  float* residual;        /* (N, C) */
  float* logits;          /* (N, V) */
  float *rows, *outs;     /* MoE: (N * K, C), into and out of experts, sorted by expert */
  float* weights;         /* MoE: (N, K) */
} Activations;

static float* take(float** arena, size_t count) {
  float* piece = *arena;
  if (piece != NULL) *arena += count;
  return piece;
}

/* Both divide an arena and return how many floats they need; without an arena they only count. */
static size_t parameters_in(float* arena, int moe, Parameters* p) {
  const size_t experts = moe ? E : 1; /* MoE */
  const size_t sizes[] = {V * C, V * C, experts * F * C, experts * C * F, V * C, moe ? E * C : 0};
  float** pieces[] = {&p->wte, &p->wprev, &p->fc, &p->proj, &p->head, &p->router};
  size_t total = 0;
  for (int i = 0; i < 6; ++i) {
    *pieces[i] = take(&arena, sizes[i]);
    total += sizes[i];
  }
  return total;
}

static size_t activations_in(float* arena, int moe, Activations* a) {
  const size_t rows = moe ? N * K : N; /* MoE */
  const size_t sizes[] = {N * C, rows * F,           rows * F,           N * C,          N * C,
                          N * V, moe ? rows * C : 0, moe ? rows * C : 0, moe ? N * K : 0};
  float** pieces[] = {&a->encoded, &a->hidden, &a->active, &a->ffn,    &a->residual,
                      &a->logits,  &a->rows,   &a->outs,   &a->weights};
  size_t total = 0;
  for (int i = 0; i < 9; ++i) {
    *pieces[i] = take(&arena, sizes[i]);
    total += sizes[i];
  }
  return total;
}

/* ---- the mixture of experts */

static void must(gatepro_status status) {
  if (status == GATEPRO_OK) return;
  fprintf(stderr, "train_c: %s\n", gatepro_last_error());
  exit(2);
}

static int32_t max_threads(void) {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

typedef struct {
  gatepro_router* router;
  int32_t ids[N * K];
  int row_of[N * K]; /* where a choice stands among rows that are sorted by expert */
  int64_t counts[E];
  gatepro_statistics statistics;
  void* workspace;
  size_t workspace_bytes;
} Moe;

static void moe_create(Moe* moe, int32_t mode, double lambda) {
  gatepro_config config = GATEPRO_CONFIG_INIT;
  config.hidden_size = C;
  config.num_experts = E;
  config.top_k = K;
  config.mode = mode;
  config.lambda = lambda;
  must(gatepro_router_create(&config, &moe->router));
  must(gatepro_workspace_bytes(moe->router, N, max_threads(), &moe->workspace_bytes));
  moe->workspace = malloc(moe->workspace_bytes);
  if (moe->workspace == NULL) exit(1);
}

static void moe_free(Moe* moe) {
  gatepro_router_destroy(moe->router);
  free(moe->workspace);
}

/* a->ffn (N, C) = sum of the weights times the FFNs of each token's experts */
static void moe_forward(Moe* moe, Activations* a, const Parameters* p) {
  gatepro_forward_args_f32 args = GATEPRO_FORWARD_ARGS_INIT_F32;
  args.tokens = N;
  args.x_TH = a->encoded;
  args.w_EH = p->router;
  args.expert_ids_TK = moe->ids;
  args.weights_TK = a->weights;
  args.tokens_per_expert_E = moe->counts;
  args.statistics = &moe->statistics;
  args.workspace = moe->workspace;
  args.workspace_bytes = moe->workspace_bytes;
  args.threads = max_threads();
  must(gatepro_forward_f32(moe->router, &args));

  int next[E], first = 0;
  for (int e = 0; e < E; ++e) {
    next[e] = first;
    first += (int)moe->counts[e];
  }
  for (int i = 0; i < N * K; ++i) moe->row_of[i] = next[moe->ids[i]]++;
#pragma omp parallel for
  for (int i = 0; i < N * K; ++i) {
    memcpy(a->rows + moe->row_of[i] * C, a->encoded + i / K * C, C * sizeof(float));
  }
  for (int e = 0, r = 0; e < E; r += (int)moe->counts[e++]) {
    ffn_forward(a->outs + r * C, a->hidden + r * F, a->active + r * F, a->rows + r * C,
                p->fc + e * F * C, p->proj + e * C * F, (int)moe->counts[e]);
  }
#pragma omp parallel for
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < C; ++c) {
      float sum = 0;
      for (int k = 0; k < K; ++k) {
        sum += a->weights[n * K + k] * a->outs[moe->row_of[n * K + k] * C + c];
      }
      a->ffn[n * C + c] = sum;
    }
  }
}

static void moe_backward(Moe* moe, Activations* da, Parameters* dp, const Activations* a,
                         const Parameters* p) {
#pragma omp parallel for
  for (int i = 0; i < N * K; ++i) {
    const float *dout = da->ffn + i / K * C, *out = a->outs + moe->row_of[i] * C;
    float *drow = da->outs + moe->row_of[i] * C, sum = 0;
    for (int c = 0; c < C; ++c) {
      drow[c] += a->weights[i] * dout[c];
      sum += dout[c] * out[c];
    }
    da->weights[i] += sum;
  }
  for (int e = 0, r = 0; e < E; r += (int)moe->counts[e++]) {
    ffn_backward(da->rows + r * C, dp->fc + e * F * C, dp->proj + e * C * F, da->hidden + r * F,
                 da->active + r * F, da->outs + r * C, a->rows + r * C, a->hidden + r * F,
                 a->active + r * F, p->fc + e * F * C, p->proj + e * C * F, (int)moe->counts[e]);
  }
#pragma omp parallel for
  for (int n = 0; n < N; ++n) {
    for (int k = 0; k < K; ++k) {
      const float* drow = da->rows + moe->row_of[n * K + k] * C;
      for (int c = 0; c < C; ++c) da->encoded[n * C + c] += drow[c];
    }
  }

  gatepro_backward_args_f32 args = GATEPRO_BACKWARD_ARGS_INIT_F32;
  args.tokens = N;
  args.x_TH = a->encoded;
  args.w_EH = p->router;
  args.expert_ids_TK = moe->ids;
  args.weights_TK = a->weights;
  args.dweights_TK = da->weights;
  args.dx_TH = da->encoded;
  args.dw_EH = dp->router;
  args.workspace = moe->workspace;
  args.workspace_bytes = moe->workspace_bytes;
  args.threads = max_threads();
  must(gatepro_backward_f32(moe->router, &args));
}

/* ---- the model */

typedef struct {
  int is_moe;
  Moe moe;
  Parameters p, dp;
  Activations a, da;
  size_t num_parameters, num_activations;
  float *arena, *dparameters, *first_moment, *second_moment, *dactivations;
} Model;

static uint64_t random_bits(uint64_t* state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 0x2545F4914F6CDD1Dull >> 32;
}

static float random_float(uint64_t* state) { /* in [-1, 1) */
  return (float)(random_bits(state) >> 8) / 8388608.0f - 1;
}

static void model_create(Model* m, int is_moe, uint64_t* random) {
  m->is_moe = is_moe;
  m->num_parameters = parameters_in(NULL, is_moe, &m->p);
  m->num_activations = activations_in(NULL, is_moe, &m->a);
  m->arena = calloc(4 * m->num_parameters + 2 * m->num_activations, sizeof(float));
  if (m->arena == NULL) exit(1);
  m->dparameters = m->arena + m->num_parameters;
  m->first_moment = m->dparameters + m->num_parameters;
  m->second_moment = m->first_moment + m->num_parameters;
  m->dactivations = m->second_moment + m->num_parameters;
  parameters_in(m->arena, is_moe, &m->p);
  parameters_in(m->dparameters, is_moe, &m->dp);
  activations_in(m->dactivations, is_moe, &m->da);
  activations_in(m->dactivations + m->num_activations, is_moe, &m->a);
  for (size_t i = 0; i < m->num_parameters; ++i) m->arena[i] = 0.3f * random_float(random);
}

static float model_step(Model* m, int step, const int* tokens, const int* before,
                        const int* targets) {
  Parameters *p = &m->p, *dp = &m->dp;
  Activations *a = &m->a, *da = &m->da;
  memset(m->dparameters, 0, m->num_parameters * sizeof(float));
  memset(m->dactivations, 0, m->num_activations * sizeof(float));

  encoder_forward(a->encoded, p->wte, p->wprev, tokens, before);
  if (m->is_moe) {                                                                     /* MoE */
    must(gatepro_refresh_f32(m->moe.router, p->router, 0, step, max_threads(), NULL)); /* MoE */
    moe_forward(&m->moe, a, p);                                                        /* MoE */
  } else {
    ffn_forward(a->ffn, a->hidden, a->active, a->encoded, p->fc, p->proj, N);
  }
  residual_forward(a->residual, a->encoded, a->ffn, N * C);
  matmul_forward(a->logits, a->residual, p->head, N, C, V);
  const float loss = loss_forward_backward(da->logits, a->logits, targets);

  matmul_backward(da->residual, dp->head, da->logits, a->residual, p->head, N, C, V);
  residual_backward(da->encoded, da->ffn, da->residual, N * C);
  if (m->is_moe) {                       /* MoE */
    moe_backward(&m->moe, da, dp, a, p); /* MoE */
  } else {
    ffn_backward(da->encoded, dp->fc, dp->proj, da->hidden, da->active, da->ffn, a->encoded,
                 a->hidden, a->active, p->fc, p->proj, N);
  }
  encoder_backward(dp->wte, dp->wprev, da->encoded, tokens, before);
  return loss;
}

static void adam(Model* m, int step) {
  const float rate = 1e-2f, beta1 = 0.9f, beta2 = 0.99f;
  const float c1 = 1 - powf(beta1, (float)step + 1), c2 = 1 - powf(beta2, (float)step + 1);
#pragma omp parallel for
  for (size_t i = 0; i < m->num_parameters; ++i) {
    const float g = m->dparameters[i];
    m->first_moment[i] = beta1 * m->first_moment[i] + (1 - beta1) * g;
    m->second_moment[i] = beta2 * m->second_moment[i] + (1 - beta2) * g * g;
    m->arena[i] -= rate * (m->first_moment[i] / c1) / (sqrtf(m->second_moment[i] / c2) + 1e-8f);
  }
}

/* ---- the language: nine times in ten the last two tokens say what follows */

typedef struct {
  int follows[V][V], last[B], before_last[B];
  uint64_t random;
} Language;

static void next_batch(Language* l, int* tokens, int* before, int* targets) {
  for (int n = 0; n < N; ++n) {
    const int b = n / T;
    tokens[n] = l->last[b];
    before[n] = l->before_last[b];
    targets[n] = random_bits(&l->random) % 10 == 0 ? (int)(random_bits(&l->random) % V)
                                                   : l->follows[before[n]][tokens[n]];
    l->before_last[b] = tokens[n];
    l->last[b] = targets[n];
  }
}

static void print_step(const Model* m, int step, float loss) {
  printf("step %4d  loss %.4f", step, loss);
  if (m->is_moe) {
    double partner = 0;
    must(gatepro_mean_similarity(m->moe.router, NULL, &partner));
    printf("  partner similarity %.3f  changed by the penalty %3d of %d  tokens per expert",
           partner, (int)m->moe.statistics.tokens_changed, N);
    for (int e = 0; e < E; ++e) printf(" %d", (int)m->moe.counts[e]);
  }
  printf("\n");
}

/* ---- the command line */

typedef struct {
  int is_moe, steps;
  int32_t mode;
  double lambda;
  uint64_t seed;
} Options;

static void refuse(const char* rule, const char* got) {
  fprintf(stderr, "train_c: need %s (got '%s')\n", rule, got);
  exit(2);
}

static long whole_number(const char* text, long least, long most, const char* rule) {
  char* end;
  const long value = strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < least || value > most) refuse(rule, text);
  return value;
}

static Options parse(int argc, char** argv) {
  Options o = {1, 300, GATEPRO_PENALTY, 1e-4, 1};
  const char* competition = NULL;
  for (int i = 1; i < argc; ++i) {
    const char* option = argv[i];
    const int has_value =
        !strcmp(option, "--lambda") || !strcmp(option, "--steps") || !strcmp(option, "--seed");
    if (has_value && i + 1 == argc) refuse("a value after the last option", option);
    const char* value = has_value ? argv[++i] : "";
    if (!strcmp(option, "--dense")) {
      o.is_moe = 0;
    } else if (!strcmp(option, "--moe")) {
      o.is_moe = 1;
    } else if (!strcmp(option, "--eliminate")) {
      o.mode = GATEPRO_ELIMINATE;
      competition = option;
    } else if (!strcmp(option, "--lambda")) {
      char* end;
      o.lambda = strtod(value, &end);
      if (end == value || *end != '\0') refuse("--lambda to be a number", value);
      o.mode = GATEPRO_PENALTY;
      competition = option;
    } else if (!strcmp(option, "--steps")) {
      o.steps = (int)whole_number(value, 2, 1000000, "2 <= --steps <= 1000000");
    } else if (!strcmp(option, "--seed")) {
      o.seed = (uint64_t)whole_number(value, 1, 1000000000, "1 <= --seed <= 1000000000");
    } else {
      refuse("--dense, --moe, --lambda, --eliminate, --steps or --seed", option);
    }
  }
  if (!o.is_moe && competition != NULL) refuse("--moe for a competition", competition);
  return o;
}

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  static Model model;
  static Language language;
  int tokens[N], before[N], targets[N];
  uint64_t random = options.seed * 0x9E3779B97F4A7C15ull;
  if (options.is_moe) moe_create(&model.moe, options.mode, options.lambda); /* MoE */
  model_create(&model, options.is_moe, &random);
  for (int i = 0; i < V * V; ++i) language.follows[i / V][i % V] = (int)(random_bits(&random) % V);
  language.random = random;

  float first = 0, loss = 0;
  for (int step = 0; step < options.steps; ++step) {
    next_batch(&language, tokens, before, targets);
    loss = model_step(&model, step, tokens, before, targets);
    if (step == 0) first = loss;
    if (step % 50 == 0 || step + 1 == options.steps) print_step(&model, step, loss);
    adam(&model, step);
  }
  printf("%s: loss %.4f -> %.4f with %d parameters\n", options.is_moe ? "moe" : "dense", first,
         loss, (int)model.num_parameters);

  if (options.is_moe) moe_free(&model.moe); /* MoE */
  free(model.arena);
  if (loss < first) return 0;
  fprintf(stderr, "train_c: the loss did not fall\n");
  return 1;
}
