// SPDX-License-Identifier: MIT
// The C interface: turns structs into views, and exceptions into codes.
#include "gatepro_c.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <gatepro/gatepro.hpp>
#include <new>
#include <string>
#include <variant>
#ifdef _OPENMP
#include <gatepro/openmp.hpp>
#endif

using gatepro::Index;

struct gatepro_router {
  std::variant<gatepro::Router<float>, gatepro::Router<double>> of;
};

namespace {

/// A struct of another version.
struct WrongVersion : gatepro::Error {
  using gatepro::Error::Error;
};

/// An array, because the text of std::bad_alloc must not allocate.
thread_local char last_error[512] = "";

gatepro_status failed(gatepro_status status, const char* text) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  return status;
}

/// Runs the body of a C function.
template <class Body>
gatepro_status guarded(const Body& body) noexcept {
  try {
    body();
    return GATEPRO_OK;
  } catch (const WrongVersion& e) {
    return failed(GATEPRO_WRONG_VERSION, e.what());
  } catch (const gatepro::Error& e) {
    return failed(GATEPRO_INVALID_ARGUMENT, e.what());
  } catch (const std::bad_alloc&) {
    return failed(GATEPRO_OUT_OF_MEMORY, "gatepro: out of memory");
  } catch (const std::exception& e) {
    return failed(GATEPRO_INTERNAL, e.what());
  } catch (...) {
    return failed(GATEPRO_INTERNAL, "gatepro: an exception of unknown type");
  }
}

template <class Value>
std::string got(const char* name, Value value) {
  return std::string(" (got ") + name + "=" + std::to_string(value) + ")";
}

template <class T>
T& given(T* argument, const char* function, const char* name) {
  if (argument != nullptr) return *argument;
  throw gatepro::Error(std::string(function) + ": need " + name + " that is not null");
}

/// A struct that the caller filled, if it is this library's.
template <class Struct>
const Struct& this_version(const Struct* argument, const char* function, const char* name) {
  const Struct& s = given(argument, function, name);
  const auto refuse = [&](const char* field, std::uint32_t wanted, std::uint32_t value) {
    throw WrongVersion(std::string(function) + ": need " + name + "->" + field + " = " +
                       std::to_string(wanted) + got(field, value));
  };
  if (s.struct_size != sizeof(Struct)) refuse("struct_size", sizeof(Struct), s.struct_size);
  if (s.version != GATEPRO_C_VERSION) refuse("version", GATEPRO_C_VERSION, s.version);
  return s;
}

/// The router of the function's scalar.
template <class A, class Handle>
auto& router_of(Handle* router, const char* function) {
  auto* typed = std::get_if<gatepro::Router<A>>(&given(router, function, "router").of);
  if (typed != nullptr) return *typed;
  throw gatepro::Error(std::string(function) + ": need a router of the function's scalar" +
                       got("config.scalar", router->of.index()));
}

gatepro::Competition competition(const char* function, std::int32_t mode, double lambda) {
  switch (mode) {
    case GATEPRO_OFF:
      return gatepro::Competition::off();
    case GATEPRO_PENALTY:
      return gatepro::Competition::penalty(lambda);
    case GATEPRO_ELIMINATE:
      return gatepro::Competition::eliminate();
    default:
      throw gatepro::Error(std::string(function) + ": need mode GATEPRO_OFF, GATEPRO_PENALTY or " +
                           "GATEPRO_ELIMINATE" + got("mode", mode));
  }
}

int workers(const char* function, std::int32_t threads) {
  if (threads < 0) {
    throw gatepro::Error(std::string(function) + ": need threads >= 0" + got("threads", threads));
  }
  return threads == 0 ? 1 : threads;
}

/// Calls `call` with an executor of `threads` threads.
template <class Call>
void on_threads(const char* function, std::int32_t threads, const Call& call) {
  [[maybe_unused]] const int count = workers(function, threads);
#ifdef _OPENMP
  if (count > 1) return call(gatepro::OpenMPExecutor(count));
#endif
  call(gatepro::SerialExecutor());
}

template <class T>
gatepro::MatrixView<T> matrix(T* data, Index rows, Index cols, Index stride) {
  return {data, rows, cols, stride == 0 ? cols : stride};
}

/// Null is "not given".
template <class T>
gatepro::MatrixView<T> optional(T* data, Index rows, Index cols, Index stride) {
  return data == nullptr ? gatepro::MatrixView<T>() : matrix(data, rows, cols, stride);
}

/// T x K.
template <class T>
gatepro::StridedView<T> choices(T* data, Index rows, Index cols, const std::ptrdiff_t* strides) {
  if (strides[0] == 0 && strides[1] == 0) return {data, rows, cols};
  return {data, rows, cols, strides[0], strides[1]};
}

template <class A>
gatepro_status refresh(gatepro_router* handle, const A* w_EH, Index w_stride, std::int64_t step,
                       std::int32_t threads, std::int32_t* refreshed) noexcept {
  const char* function = "gatepro_refresh";
  return guarded([&] {
    auto& router = router_of<A>(handle, function);
    const auto& config = router.config();
    const auto w = matrix(w_EH, config.num_experts, config.hidden_size, w_stride);
    bool was_due = false;
    on_threads(function, threads,
               [&](const auto& executor) { was_due = router.refresh(w, step, executor); });
    if (refreshed != nullptr) *refreshed = was_due ? 1 : 0;
  });
}

/// Calls `call` with the router, whatever its scalar is.
template <class Handle, class Call>
gatepro_status on_router(Handle* handle, const char* function, const Call& call) noexcept {
  return guarded([&] { std::visit(call, given(handle, function, "router").of); });
}

/// A table of E x m partners.
template <class R, class Id>
gatepro::MatrixView<Id> table(const char* function, const R& router, Id* partners_EM, Index count) {
  const Index experts = router.config().num_experts;
  const Index per_expert = router.config().pairing.partners_per_expert;
  // Not a product, which could overflow.
  if (count < 0 || count % experts != 0 || count / experts != per_expert) {
    throw gatepro::Error(
        std::string(function) + ": need count = num_experts * partners_per_expert" +
        " (got count=" + std::to_string(count) + ", num_experts=" + std::to_string(experts) +
        ", partners_per_expert=" + std::to_string(per_expert) + ")");
  }
  return {partners_EM, experts, per_expert};
}

/// Calls route(router, args, outputs but for logits, workspace, executor).
template <class A, class Args, class Route>
gatepro_status forward(const char* function, const gatepro_router* handle, const Args* arguments,
                       const Route& route) noexcept {
  return guarded([&] {
    const auto& router = router_of<A>(handle, function);
    const Args& args = this_version(arguments, function, "args");
    const auto& config = router.config();
    gatepro::RoutingView<A> out;
    out.expert_ids_TK =
        choices(args.expert_ids_TK, args.tokens, config.top_k, args.expert_ids_strides);
    out.weights_TK = choices(args.weights_TK, args.tokens, config.top_k, args.weights_strides);
    if (args.tokens_per_expert_E != nullptr) {
      out.tokens_per_expert_E = {args.tokens_per_expert_E, config.num_experts};
    }
    gatepro::PenaltyStatistics s;
    if (args.statistics != nullptr) out.statistics = &s;
    gatepro::RoutingReport report;
    on_threads(function, args.threads, [&](const auto& executor) {
      report = route(router, args, out, {args.workspace, args.workspace_bytes}, executor);
    });
    if (args.nonfinite_tokens != nullptr) *args.nonfinite_tokens = report.nonfinite_rows;
    if (args.statistics != nullptr) {
      *args.statistics = {s.tokens,
                          s.penalised_pairs,
                          s.penalties_lost_in_rounding,
                          s.tied_pairs,
                          s.tokens_changed,
                          s.tokens_short_of_survivors,
                          s.partnered_selections,
                          s.coactivations};
    }
  });
}

template <class A, class Args>
gatepro_status forward_tokens(const gatepro_router* handle, const Args* arguments) noexcept {
  return forward<A>("gatepro_forward", handle, arguments,
                    [](const auto& router, const Args& args, gatepro::RoutingView<A> out,
                       gatepro::Workspace workspace, const auto& executor) {
                      const auto& config = router.config();
                      out.logits_TE = optional(args.logits_TE, args.tokens, config.num_experts,
                                               args.logits_stride);
                      return router.forward(
                          matrix(args.x_TH, args.tokens, config.hidden_size, args.x_stride),
                          matrix(args.w_EH, config.num_experts, config.hidden_size, args.w_stride),
                          out, workspace, executor);
                    });
}

template <class A, class Args>
gatepro_status forward_logits(const gatepro_router* handle, const Args* arguments) noexcept {
  return forward<A>(
      "gatepro_forward_logits", handle, arguments,
      [](const auto& router, const Args& args, const gatepro::RoutingView<A>& out,
         gatepro::Workspace workspace, const auto& executor) {
        const A* logits_TE = args.logits_TE;
        return router.forward_logits(
            matrix(logits_TE, args.tokens, router.config().num_experts, args.logits_stride), out,
            workspace, executor);
      });
}

/// Calls add(router, args, routed, incoming, workspace, executor).
template <class A, class Args, class Add>
gatepro_status backward(const char* function, const gatepro_router* handle, const Args* arguments,
                        const Add& add) noexcept {
  return guarded([&] {
    const auto& router = router_of<A>(handle, function);
    const Args& args = this_version(arguments, function, "args");
    const Index tokens = args.tokens;
    const auto& config = router.config();
    const gatepro::RoutedChoices<A> routed{
        choices(args.expert_ids_TK, tokens, config.top_k, args.expert_ids_strides),
        choices(args.weights_TK, tokens, config.top_k, args.weights_strides)};
    const gatepro::WeightGradients<A> incoming{
        choices(args.dweights_TK, tokens, config.top_k, args.dweights_strides),
        optional(args.dlogits_TE, tokens, config.num_experts, args.dlogits_stride)};
    on_threads(function, args.threads, [&](const auto& executor) {
      const gatepro::Workspace workspace(args.workspace, args.workspace_bytes);
      add(router, args, routed, incoming, workspace, executor);
    });
  });
}

template <class A, class Args>
gatepro_status backward_tokens(const gatepro_router* handle, const Args* arguments) noexcept {
  return backward<A>("gatepro_backward", handle, arguments,
                     [](const auto& router, const Args& args, const auto& routed,
                        const auto& incoming, gatepro::Workspace workspace, const auto& executor) {
                       const Index hidden = router.config().hidden_size;
                       const Index experts = router.config().num_experts;
                       const gatepro::GateGradients<A> gradients{
                           optional(args.dx_TH, args.tokens, hidden, args.dx_stride),
                           optional(args.dw_EH, experts, hidden, args.dw_stride)};
                       router.backward(matrix(args.x_TH, args.tokens, hidden, args.x_stride),
                                       matrix(args.w_EH, experts, hidden, args.w_stride), routed,
                                       incoming, gradients, workspace, executor);
                     });
}

template <class A, class Args>
gatepro_status backward_logits(const gatepro_router* handle, const Args* arguments) noexcept {
  return backward<A>("gatepro_backward_logits", handle, arguments,
                     [](const auto& router, const Args& args, const auto& routed,
                        const auto& incoming, gatepro::Workspace workspace, const auto& executor) {
                       router.backward_logits(
                           routed, incoming,
                           matrix(args.dlogits_out_TE, args.tokens, router.config().num_experts,
                                  args.dlogits_out_stride),
                           workspace, executor);
                     });
}

}  // namespace

const char* gatepro_last_error() { return last_error; }

gatepro_status gatepro_router_create(const gatepro_config* config, gatepro_router** router) {
  const char* function = "gatepro_router_create";
  return guarded([&] {
    const gatepro_config& wanted = this_version(config, function, "config");
    gatepro_router*& result = given(router, function, "router");
    gatepro::RouterConfig settings{wanted.hidden_size, wanted.num_experts, wanted.top_k};
    settings.competition = competition(function, wanted.mode, wanted.lambda);
    if (wanted.higher_id_loses_ties != 0) {
      settings.competition.ties = gatepro::TieRule::higher_id_loses;
    }
    settings.pairing.partners_per_expert = wanted.partners_per_expert;
    settings.refresh = gatepro::RefreshSchedule::every(wanted.refresh_every);
    settings.allow_zero_gradient = wanted.allow_zero_gradient != 0;
    switch (wanted.scalar) {
      case GATEPRO_F32:
        result = new gatepro_router{gatepro::Router<float>(settings)};
        break;
      case GATEPRO_F64:
        result = new gatepro_router{gatepro::Router<double>(settings)};
        break;
      default:
        throw gatepro::Error(std::string(function) + ": need scalar GATEPRO_F32 or GATEPRO_F64" +
                             got("scalar", wanted.scalar));
    }
  });
}

void gatepro_router_destroy(gatepro_router* router) { delete router; }

gatepro_status gatepro_set_competition(gatepro_router* router, int32_t mode, double lambda) {
  return on_router(router, "gatepro_set_competition", [&](auto& r) {
    gatepro::Competition wanted = competition("gatepro_set_competition", mode, lambda);
    wanted.ties = r.config().competition.ties;
    r.set_competition(wanted);
  });
}

gatepro_status gatepro_get_partners(const gatepro_router* router, int32_t* partners_EM,
                                    ptrdiff_t count, int64_t* step) {
  const char* function = "gatepro_get_partners";
  return on_router(router, function, [&](const auto& r) {
    const auto& cache = r.similarity_cache();
    const auto partners = table(function, r, &given(partners_EM, function, "partners_EM"), count);
    if (!cache.has_partners()) {
      throw gatepro::Error(std::string(function) + ": need partners: refresh or set them first");
    }
    std::copy_n(cache.partners().data, count, partners.data);
    if (step != nullptr) *step = cache.last_refresh_step();
  });
}

gatepro_status gatepro_set_partners(gatepro_router* router, const int32_t* partners_EM,
                                    ptrdiff_t count, int64_t step) {
  const char* function = "gatepro_set_partners";
  return on_router(router, function, [&](auto& r) {
    r.set_partners(table(function, r, &given(partners_EM, function, "partners_EM"), count), step);
  });
}

gatepro_status gatepro_mean_similarity(const gatepro_router* router, double* pairwise,
                                       double* partner) {
  return on_router(router, "gatepro_mean_similarity", [&](const auto& r) {
    const double of_pairs = r.similarity_cache().mean_pairwise_similarity();
    const double of_partners = r.similarity_cache().mean_partner_similarity();
    if (pairwise != nullptr) *pairwise = of_pairs;
    if (partner != nullptr) *partner = of_partners;
  });
}

gatepro_status gatepro_workspace_bytes(const gatepro_router* router, ptrdiff_t tokens,
                                       int32_t threads, size_t* bytes) {
  const char* function = "gatepro_workspace_bytes";
  return on_router(router, function, [&](const auto& r) {
    given(bytes, function, "bytes") = r.workspace_bytes({tokens, workers(function, threads)});
  });
}

gatepro_status gatepro_refresh_f32(gatepro_router* router, const float* w_EH, ptrdiff_t w_stride,
                                   int64_t step, int32_t threads, int32_t* refreshed) {
  return refresh(router, w_EH, w_stride, step, threads, refreshed);
}
gatepro_status gatepro_refresh_f64(gatepro_router* router, const double* w_EH, ptrdiff_t w_stride,
                                   int64_t step, int32_t threads, int32_t* refreshed) {
  return refresh(router, w_EH, w_stride, step, threads, refreshed);
}

gatepro_status gatepro_forward_f32(const gatepro_router* router,
                                   const gatepro_forward_args_f32* args) {
  return forward_tokens<float>(router, args);
}
gatepro_status gatepro_forward_f64(const gatepro_router* router,
                                   const gatepro_forward_args_f64* args) {
  return forward_tokens<double>(router, args);
}

gatepro_status gatepro_forward_logits_f32(const gatepro_router* router,
                                          const gatepro_forward_args_f32* args) {
  return forward_logits<float>(router, args);
}
gatepro_status gatepro_forward_logits_f64(const gatepro_router* router,
                                          const gatepro_forward_args_f64* args) {
  return forward_logits<double>(router, args);
}

gatepro_status gatepro_backward_f32(const gatepro_router* router,
                                    const gatepro_backward_args_f32* args) {
  return backward_tokens<float>(router, args);
}
gatepro_status gatepro_backward_f64(const gatepro_router* router,
                                    const gatepro_backward_args_f64* args) {
  return backward_tokens<double>(router, args);
}

gatepro_status gatepro_backward_logits_f32(const gatepro_router* router,
                                           const gatepro_backward_args_f32* args) {
  return backward_logits<float>(router, args);
}
gatepro_status gatepro_backward_logits_f64(const gatepro_router* router,
                                           const gatepro_backward_args_f64* args) {
  return backward_logits<double>(router, args);
}
