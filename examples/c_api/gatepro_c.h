/* SPDX-License-Identifier: MIT
 *
 * gatepro for C: a mixture-of-experts router in which similar experts compete for tokens (Zheng et
 * al. 2025, arXiv 2510.13079). Copy this header and gatepro_c.cpp; see docs/c.md.
 *
 * Letters in names are shapes: T tokens (B * T of a trainer with batches), H hidden size (its C), E
 * experts, K experts per token, m partners per expert. x_TH is T x H, row-major.
 *
 * Every function but gatepro_router_destroy and gatepro_last_error returns a gatepro_status. If it
 * is not GATEPRO_OK, nothing was written but the text of gatepro_last_error. No C++ exception
 * leaves a function. No pointer is kept after a call.
 *
 * The memory is the caller's: outputs and workspace. Forwards and backwards allocate nothing, read
 * the router only, and may run at the same time in any number of threads, each with a workspace of
 * its own. Functions that take a router that is not const write it: they must not run beside any
 * other call on that router.
 */
#ifndef GATEPRO_C_H
#define GATEPRO_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the structs below; it grows when one of them changes. */
#define GATEPRO_C_VERSION 1u

/* What a call returns. */
typedef enum gatepro_status {
  GATEPRO_OK = 0,
  GATEPRO_INVALID_ARGUMENT = 1, /* a null, shape, stride, setting, id, or a workspace too small */
  GATEPRO_WRONG_VERSION = 2,    /* a struct of another version or size than this library's */
  GATEPRO_OUT_OF_MEMORY = 3,    /* create, refresh and set_partners allocate; error texts do */
  GATEPRO_INTERNAL = 4          /* any other exception; a bug */
} gatepro_status;

/* The text of the last call that failed on this thread: function, rule and values, as in
 * "gatepro::Router: need 1 <= top_k <= num_experts (got top_k=9, num_experts=8)". "" before any has
 * failed. Never null; valid until the next failure on this thread. */
const char* gatepro_last_error(void);

/* The type of x, w, logits, weights and gradients. A call with the suffix of another is an error.
 */
typedef enum gatepro_scalar { GATEPRO_F32 = 0, GATEPRO_F64 = 1 } gatepro_scalar;

/* What happens to an expert whose logit is below that of its partner. */
typedef enum gatepro_mode {
  GATEPRO_OFF = 0,      /* nothing: plain top-k routing, bit for bit */
  GATEPRO_PENALTY = 1,  /* it pays lambda before top-k and softmax; the paper's rule */
  GATEPRO_ELIMINATE = 2 /* it ranks last and weighs 0: the limit of large lambda */
} gatepro_mode;

/* The settings of a router. Start from GATEPRO_CONFIG_INIT. */
typedef struct gatepro_config {
  uint32_t struct_size; /* sizeof(gatepro_config) */
  uint32_t version;     /* GATEPRO_C_VERSION */
  ptrdiff_t hidden_size;
  ptrdiff_t num_experts;
  ptrdiff_t top_k;               /* 1 <= top_k <= num_experts */
  int32_t scalar;                /* gatepro_scalar */
  int32_t mode;                  /* gatepro_mode */
  double lambda;                 /* the penalty, in units of the logits: finite, >= 0 */
  int64_t refresh_every;         /* optimizer steps between refreshes, >= 1 */
  ptrdiff_t partners_per_expert; /* m, 1 <= m < num_experts; the paper's rule is 1 */
  int32_t higher_id_loses_ties;  /* of two experts with equal logits; 0: nobody does, as printed */
  int32_t allow_zero_gradient;   /* top_k = 1 has constant weights: 0 lets backward refuse that */
} gatepro_config;

/* The defaults: float, the published penalty, partners of every step. Sizes are still to be set. */
#define GATEPRO_CONFIG_INIT                                                                       \
  {                                                                                               \
    sizeof(gatepro_config), GATEPRO_C_VERSION, 0, 0, 0, GATEPRO_F32, GATEPRO_PENALTY, 1e-4, 1, 1, \
        0, 0                                                                                      \
  }

/* A router: settings and partners. The weights stay the trainer's. */
typedef struct gatepro_router gatepro_router;

/* Makes a router without partners in *router. Errors: settings, nulls; *router is then unchanged.
 */
gatepro_status gatepro_router_create(const gatepro_config* config, gatepro_router** router);

/* Frees it. Null is fine. */
void gatepro_router_destroy(gatepro_router* router);

/* Changes the competition of all later forwards. Off, or lambda = 0, routes bit for bit like a
 * router that never had partners. lambda is read with GATEPRO_PENALTY only. */
gatepro_status gatepro_set_competition(gatepro_router* router, int32_t mode, double lambda);

/* Finds each expert's partner, the one with the most similar row of w_EH, if that is due at
 * optimizer step `step`; *refreshed (may be null) says whether it was. The same step is due once,
 * going back in steps is due. Rows of w_EH are w_stride elements apart; 0 for no gaps. Allocates at
 * first use. Cost: some E * E * H operations on `threads` threads, see gatepro_forward_args_f32. If
 * it fails the old partners stay. Competition needs partners: call it after each optimizer step. */
gatepro_status gatepro_refresh_f32(gatepro_router* router, const float* w_EH, ptrdiff_t w_stride,
                                   int64_t step, int32_t threads, int32_t* refreshed);
gatepro_status gatepro_refresh_f64(gatepro_router* router, const double* w_EH, ptrdiff_t w_stride,
                                   int64_t step, int32_t threads, int32_t* refreshed);

/* What a checkpoint keeps, beside the config, and what rank 0 may broadcast: E x m ids of partners,
 * most similar first, an expert's own id for "none", and the step they were found at. `count` is E
 * * m. Get: an error before there are any; `step` may be null. Set: any step, ids in [0, E). */
gatepro_status gatepro_get_partners(const gatepro_router* router, int32_t* partners_EM,
                                    ptrdiff_t count, int64_t* step);
gatepro_status gatepro_set_partners(gatepro_router* router, const int32_t* partners_EM,
                                    ptrdiff_t count, int64_t step);

/* Mean cosine similarity of all pairs of router rows, and of experts with their partners, at the
 * last refresh. Either may be null. Errors: no refresh yet, or partners set since then, or E >
 * 8192, where similarities are not kept. Cost: E * E additions. */
gatepro_status gatepro_mean_similarity(const gatepro_router* router, double* pairwise,
                                       double* partner);

/* What the penalty did to the tokens of one forward. Costs a second selection. */
typedef struct gatepro_statistics {
  int64_t tokens;
  int64_t penalised_pairs;            /* (token, expert) pairs in which the expert lost */
  int64_t penalties_lost_in_rounding; /* of these, logit - lambda rounds to the logit */
  int64_t tied_pairs;                 /* an expert's logit equals its partner's */
  int64_t tokens_changed;             /* the selected set is not that of plain top-k */
  int64_t tokens_short_of_survivors;  /* elimination: a loser had to fill a slot */
  int64_t partnered_selections;       /* selections of an expert that has a partner */
  int64_t coactivations;              /* of these, with the partner selected for the same token */
} gatepro_statistics;

/* The workspace in bytes that serves every forward and backward of up to `tokens` tokens on up to
 * `threads` threads, at any alignment. */
gatepro_status gatepro_workspace_bytes(const gatepro_router* router, ptrdiff_t tokens,
                                       int32_t threads, size_t* bytes);

/* Arguments of a forward. Zeros in what is not needed: `= GATEPRO_FORWARD_ARGS_INIT_F32`, then set.
 *
 * A stride is in elements; 0 means rows without gaps. [T, K] arrays have two, from token to token
 * and from choice to choice; {0, 0} means {K, 1}. Outputs must not overlap anything else.
 *
 * threads: at most so many OpenMP threads work, if gatepro_c.cpp was compiled with OpenMP; 0 and 1
 * for the calling thread. Bits do not depend on it. */
typedef struct gatepro_forward_args_f32 {
  uint32_t struct_size; /* sizeof(gatepro_forward_args_f32) */
  uint32_t version;     /* GATEPRO_C_VERSION */
  ptrdiff_t tokens;     /* T >= 0 */
  /* in */
  const float* x_TH;
  ptrdiff_t x_stride;
  const float* w_EH;
  ptrdiff_t w_stride;
  /* out */
  int32_t* expert_ids_TK; /* best first, distinct, in [0, E) for any bits of x and w */
  ptrdiff_t expert_ids_strides[2];
  float* weights_TK; /* sum 1 per token; NaN where a NaN or +inf was selected */
  ptrdiff_t weights_strides[2];
  int64_t* tokens_per_expert_E; /* optional */
  float* logits_TE;             /* optional: x w^T before the penalty */
  ptrdiff_t logits_stride;
  gatepro_statistics* statistics; /* optional */
  int64_t* nonfinite_tokens;      /* optional: how many tokens have NaN weights */
  /* scratch */
  void* workspace;
  size_t workspace_bytes;
  int32_t threads;
} gatepro_forward_args_f32;

/* The same in double. */
typedef struct gatepro_forward_args_f64 {
  uint32_t struct_size;
  uint32_t version;
  ptrdiff_t tokens;
  const double* x_TH;
  ptrdiff_t x_stride;
  const double* w_EH;
  ptrdiff_t w_stride;
  int32_t* expert_ids_TK;
  ptrdiff_t expert_ids_strides[2];
  double* weights_TK;
  ptrdiff_t weights_strides[2];
  int64_t* tokens_per_expert_E;
  double* logits_TE;
  ptrdiff_t logits_stride;
  gatepro_statistics* statistics;
  int64_t* nonfinite_tokens;
  void* workspace;
  size_t workspace_bytes;
  int32_t threads;
} gatepro_forward_args_f64;

#define GATEPRO_FORWARD_ARGS_INIT_(type)                                                          \
  {                                                                                               \
    sizeof(type), GATEPRO_C_VERSION, 0, NULL, 0, NULL, 0, NULL, {0, 0}, NULL, {0, 0}, NULL, NULL, \
        0, NULL, NULL, NULL, 0, 0                                                                 \
  }
#define GATEPRO_FORWARD_ARGS_INIT_F32 GATEPRO_FORWARD_ARGS_INIT_(gatepro_forward_args_f32)
#define GATEPRO_FORWARD_ARGS_INIT_F64 GATEPRO_FORWARD_ARGS_INIT_(gatepro_forward_args_f64)

/* Routes T tokens: logits = x w^T, competition, top-k, softmax over the K selected. Errors: nulls,
 * strides, overlaps, the workspace, competition without partners. */
gatepro_status gatepro_forward_f32(const gatepro_router* router,
                                   const gatepro_forward_args_f32* args);
gatepro_status gatepro_forward_f64(const gatepro_router* router,
                                   const gatepro_forward_args_f64* args);

/* The same from logits that the trainer computed itself: logits_TE is read, x_TH and w_EH are not.
 */
gatepro_status gatepro_forward_logits_f32(const gatepro_router* router,
                                          const gatepro_forward_args_f32* args);
gatepro_status gatepro_forward_logits_f64(const gatepro_router* router,
                                          const gatepro_forward_args_f64* args);

/* Arguments of a backward; strides, workspace and threads as in a forward. */
typedef struct gatepro_backward_args_f32 {
  uint32_t struct_size; /* sizeof(gatepro_backward_args_f32) */
  uint32_t version;     /* GATEPRO_C_VERSION */
  ptrdiff_t tokens;     /* T >= 0 */
  /* in: as in, and what came out of, the forward */
  const float* x_TH;
  ptrdiff_t x_stride;
  const float* w_EH;
  ptrdiff_t w_stride;
  const int32_t* expert_ids_TK; /* -1 for a choice that was dropped */
  ptrdiff_t expert_ids_strides[2];
  const float* weights_TK;
  ptrdiff_t weights_strides[2];
  /* in: gradients of the loss */
  const float* dweights_TK;
  ptrdiff_t dweights_strides[2];
  const float* dlogits_TE; /* optional: what losses of your own add to that of the raw logits */
  ptrdiff_t dlogits_stride;
  /* out: added to */
  float* dx_TH; /* optional */
  ptrdiff_t dx_stride;
  float* dw_EH; /* optional */
  ptrdiff_t dw_stride;
  float* dlogits_out_TE; /* of gatepro_backward_logits only */
  ptrdiff_t dlogits_out_stride;
  /* scratch */
  void* workspace;
  size_t workspace_bytes;
  int32_t threads;
} gatepro_backward_args_f32;

/* The same in double. */
typedef struct gatepro_backward_args_f64 {
  uint32_t struct_size;
  uint32_t version;
  ptrdiff_t tokens;
  const double* x_TH;
  ptrdiff_t x_stride;
  const double* w_EH;
  ptrdiff_t w_stride;
  const int32_t* expert_ids_TK;
  ptrdiff_t expert_ids_strides[2];
  const double* weights_TK;
  ptrdiff_t weights_strides[2];
  const double* dweights_TK;
  ptrdiff_t dweights_strides[2];
  const double* dlogits_TE;
  ptrdiff_t dlogits_stride;
  double* dx_TH;
  ptrdiff_t dx_stride;
  double* dw_EH;
  ptrdiff_t dw_stride;
  double* dlogits_out_TE;
  ptrdiff_t dlogits_out_stride;
  void* workspace;
  size_t workspace_bytes;
  int32_t threads;
} gatepro_backward_args_f64;

#define GATEPRO_BACKWARD_ARGS_INIT_(type)                                                   \
  {                                                                                         \
    sizeof(type), GATEPRO_C_VERSION, 0, NULL, 0, NULL, 0, NULL, {0, 0}, NULL, {0, 0}, NULL, \
        {0, 0}, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, 0                              \
  }
#define GATEPRO_BACKWARD_ARGS_INIT_F32 GATEPRO_BACKWARD_ARGS_INIT_(gatepro_backward_args_f32)
#define GATEPRO_BACKWARD_ARGS_INIT_F64 GATEPRO_BACKWARD_ARGS_INIT_(gatepro_backward_args_f64)

/* Adds dlogits w to dx_TH and dlogits^T x to dw_EH. The penalty is piecewise constant: no gradient
 * reaches the similarity. Errors: as in a forward, ids that are neither -1 nor in [0, E), and top_k
 * = 1 without dlogits_TE unless the config allows it. */
gatepro_status gatepro_backward_f32(const gatepro_router* router,
                                    const gatepro_backward_args_f32* args);
gatepro_status gatepro_backward_f64(const gatepro_router* router,
                                    const gatepro_backward_args_f64* args);

/* The gradient of the logits alone, for trainers with a GEMM of their own: added to dlogits_out_TE,
 * which is other memory than dlogits_TE. x_TH, w_EH, dx_TH and dw_EH are not read or written. */
gatepro_status gatepro_backward_logits_f32(const gatepro_router* router,
                                           const gatepro_backward_args_f32* args);
gatepro_status gatepro_backward_logits_f64(const gatepro_router* router,
                                           const gatepro_backward_args_f64* args);

#ifdef __cplusplus
}
#endif

#endif /* GATEPRO_C_H */
